"""Reading results: the `trials.jsonl` of `pipeinfer reproduce`, or the JSON files of pytest-benchmark."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pandas as pd

from pipeinfer.results.frame import measured
from pipeinfer.results.records import Record, decode, record_lines
from pipeinfer.workload import WorkloadError

NOT_THE_CELL = {"repeat", "repeats", "spans", "prompts", "temperatures"}
"""Keys of a configuration that say how often and how closely to look, and what other cells the sweep had."""


class Metric(NamedTuple):
    """What is compared, and which way is better."""

    title: str
    higher_is_better: bool = False


METRICS = {
    "tokens_per_s": Metric("tokens/s", higher_is_better=True),
    "ttft_s": Metric("first token (s)"),
    "itl_p95_s": Metric("between tokens, p95 (s)"),
    "median_s": Metric("median (s)"),
}
"""By column: those of the table of trials, and what is taken from pytest-benchmark."""


class Results(NamedTuple):
    """A row per repetition: the `cell` (all that decides on it, as bytes) with its `config`, the text and what was
    measured as the table of trials has them, columns of METRICS; `exact`: simulated, so that nothing in it is noise;
    `config_hash`, which covers the `version` of pipeinfer; and the `machine`."""

    name: str
    rows: pd.DataFrame


def read(path: Path) -> Results:
    """The results in a file, or in a folder and the folders in it; each file is a turn. Raises WorkloadError."""
    files = _files(path)
    rows_of = _of_trials if files[0].suffix == ".jsonl" else _of_benchmarks
    rows = pd.DataFrame([row for file in files for row in rows_of(file)])
    if rows.empty:
        raise WorkloadError(f"{path}: there is no result in it")
    return Results(str(path), rows)


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


def _of_trials(file: Path) -> Iterator[dict[str, Any]]:
    for record in _records(file):
        config, where = _flat(record.config), record.environment
        if record.predictor is None:
            yield {
                "cell": msgspec.json.encode(config, order="sorted"), "config": config,
                "exact": record.fidelity == "sim", "version": where.get("pipeinfer", ""),
                "config_hash": record.config_hash, "machine": _machine(where.get("processor"), where.get("cores")),
                "status": "" if record.trial else "failed", "why": record.error,
                **(measured(record.trial) if record.trial else dict.fromkeys(("token_ids", "margins", "precision"))),
            }  # fmt: skip


def _records(file: Path) -> Iterator[Record]:
    """The records of a file; half a line at its end, left by a process that was killed, is no error."""
    for number, _, line in record_lines(file):
        try:
            yield decode(line)
        except (ValueError, TypeError) as problem:
            if number > 1 and not line.endswith(b"\n"):
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


class _Benchmarks(msgspec.Struct, frozen=True):
    benchmarks: list[_Benchmark]
    machine_info: dict[str, Any] = {}


def _of_benchmarks(file: Path) -> Iterator[dict[str, Any]]:
    """A file holds one repetition of each benchmark: its median over the rounds."""
    try:
        content = msgspec.json.decode(file.read_bytes(), type=_Benchmarks)
    except ValueError as problem:
        raise WorkloadError(f"{file}: not a file of pytest-benchmark: {problem}") from None
    cpu = content.machine_info.get("cpu", {})
    for benchmark in content.benchmarks:
        path, _, name = benchmark.fullname.partition("::")
        yield {
            "cell": benchmark.fullname.encode(), "config": {"file": path, "benchmark": name}, "exact": False,
            "version": "", "config_hash": "", "machine": _machine(cpu.get("brand_raw"), cpu.get("count")),
            "status": "", "why": "", "token_ids": (), "margins": (), "precision": "",
            "median_s": benchmark.stats.median,
        }  # fmt: skip
