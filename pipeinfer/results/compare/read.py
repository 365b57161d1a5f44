"""Reading results: the `trials.jsonl` of `pipeinfer reproduce`, or the JSON files of pytest-benchmark."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeinfer.results import metrics
from pipeinfer.results.records import Record, decode, numbered
from pipeinfer.results.trial import Trial
from pipeinfer.workload import WorkloadError

NOT_THE_CELL = {"repeat", "repeats", "spans", "prompts", "temperatures"}
"""Keys of a configuration that say how often and how closely to look, and what other cells the sweep had."""


class Metric(NamedTuple):
    """What is compared, and which way is better."""

    title: str
    higher_is_better: bool = False


OF_A_TRIAL: dict[Metric, Callable[[Trial], float | None]] = {
    Metric("tokens/s", higher_is_better=True): metrics.tokens_per_second,
    Metric("first token (s)"): metrics.ttft_s,
    Metric("between tokens, p95 (s)"): lambda trial: metrics.itl_s(trial)["p95"],
}
MEDIAN = Metric("median (s)")
"""What is taken from pytest-benchmark."""


class ComparedCell(msgspec.Struct):
    """One point of a workload: what was measured in it, a value per repetition.

    `exact`: simulated, so that nothing in it is noise. `hashes` are those of the records, with pipeinfer's version.
    """

    config: dict[str, Any]
    exact: bool = False
    values: dict[Metric, list[float | None]] = {}
    tokens: set[tuple[int, ...]] = set()
    hashes: set[tuple[str, str]] = set()
    error: str = ""


class Results(NamedTuple):
    """The cells of a file or folder, by the hash of their configuration, and the machines they were measured on."""

    name: str
    metrics: tuple[Metric, ...]
    cells: dict[str, ComparedCell]
    machines: set[str]


def read(path: Path) -> Results:
    """The results in a file, or in a folder and the folders in it; each file is a turn. Raises WorkloadError."""
    files = _files(path)
    trials = files[0].suffix == ".jsonl"
    results = Results(str(path), tuple(OF_A_TRIAL) if trials else (MEDIAN,), {}, set())
    for file in files:
        (_add_trials if trials else _add_benchmarks)(results, file)
    if not results.cells:
        raise WorkloadError(f"{path}: there is no result in it")
    return results


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for pattern in ("*.jsonl", "*.json"):
        if found := sorted(path.rglob(pattern), key=_natural):
            return found
    problem = "there is no result in it" if path.exists() else "no such file or folder"
    raise WorkloadError(
        f"{path}: {problem}: expected trials.jsonl, a JSON file of pytest-benchmark, or a folder of them"
    )


def _natural(path: Path) -> list[int | str]:
    """Turn 10 comes after turn 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


# Trials


def _add_trials(results: Results, file: Path) -> None:
    for record in _records(file):
        config = _flat(record.config)
        key = hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()[:16]
        cell = results.cells.setdefault(key, ComparedCell(config, exact=record.fidelity == "sim"))
        cell.hashes.add((record.environment.get("pipeinfer", ""), record.config_hash))
        results.machines.add(_machine(record.environment.get("processor"), record.environment.get("cores")))
        if record.trial is None:
            cell.error = record.error
            continue
        cell.tokens.add(record.trial.token_ids)
        for metric, value in OF_A_TRIAL.items():
            cell.values.setdefault(metric, []).append(value(record.trial))


def _records(file: Path) -> Iterator[Record]:
    """The records of a file; half a line at its end, left by a process that was killed, is no error."""
    content = file.read_bytes()
    last = content.count(b"\n") + 1
    for number, line in numbered(content):
        try:
            yield decode(line)
        except (ValueError, TypeError) as problem:
            if number == last > 1:
                return
            raise WorkloadError(f"{file}: line {number} is not the record of a trial: {problem}") from None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; what does not decide on the cell is left out."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        elif name not in NOT_THE_CELL:
            flat[prefix + name] = value
    return flat


def _machine(processor: object, cores: object) -> str:
    return f"{processor or 'unknown processor'}, {cores or '?'} cores"


# pytest-benchmark


class _Stats(msgspec.Struct, frozen=True):
    median: float


class _Benchmark(msgspec.Struct, frozen=True):
    fullname: str
    stats: _Stats


class _Cpu(msgspec.Struct, frozen=True):
    brand_raw: str = ""
    count: int = 0


class _MachineInfo(msgspec.Struct, frozen=True):
    cpu: _Cpu = _Cpu()


class _Benchmarks(msgspec.Struct, frozen=True):
    benchmarks: list[_Benchmark]
    machine_info: _MachineInfo = _MachineInfo()


def _add_benchmarks(results: Results, file: Path) -> None:
    """A file holds one repetition of each benchmark: its median over the rounds."""
    content = _benchmarks(file)
    results.machines.add(_machine(content.machine_info.cpu.brand_raw, content.machine_info.cpu.count))
    for benchmark in content.benchmarks:
        path, _, name = benchmark.fullname.partition("::")
        cell = results.cells.setdefault(benchmark.fullname, ComparedCell({"file": path, "benchmark": name}))
        cell.values.setdefault(MEDIAN, []).append(benchmark.stats.median)


def _benchmarks(file: Path) -> _Benchmarks:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Benchmarks)
    except ValueError as problem:
        raise WorkloadError(f"{file}: not a file of pytest-benchmark: {problem}") from None
