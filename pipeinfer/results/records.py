"""Raw data: one JSON object per trial, one line each, appended and flushed. Everything else is derived from it.

A cell that has a record is not run again; `pipeinfer/study/identity.py` says what makes it the same cell. A last line
cut short by a kill or a full disk is dropped, and its cell run again.
"""

import codecs
import os
import platform
import subprocess
import time
import types
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import pipeinfer
from pipeinfer.assets import PACKAGE
from pipeinfer.results import metrics
from pipeinfer.results.trial import RunRecord, Trial
from pipeinfer.runtime.processor_quota import bound_cores
from pipeinfer.runtime.spans import Span
from pipeinfer.workload import WorkloadError

FILE = "trials.jsonl"


class Record(msgspec.Struct, frozen=True):
    """One cell's outcome: its trial (or the predictor that it made), or the error that kept it from having one.
    `environment` and `seconds` (what it took to obtain) are all that differs when two machines simulate a cell."""

    config_hash: str
    config: dict[str, Any]
    fidelity: str
    seed: int
    trial: Trial | None
    error: str = ""
    spans: list[Span] = []
    seconds: float = 0.0
    environment: dict[str, Any] = {}
    predictor: dict[str, Any] | None = None


def encode(record: Record) -> bytes:
    """One line. The runs of the trial stand as columns, which is shorter, and what a data frame wants."""
    line = msgspec.to_builtins(record)
    if record.trial is not None:
        runs = record.trial.runs
        columns = {name: [getattr(run, name) for run in runs] for name in RunRecord.__struct_fields__}
        # Most stages of most cancelled runs took no time at all: 0 is a third of 0.0.
        columns["compute_s"] = [[seconds or 0 for seconds in run.compute_s] for run in runs]
        line["trial"]["runs"] = columns
    return msgspec.json.encode(line) + b"\n"


_COLUMNS: list[Any] = [(one.name, types.GenericAlias(list, one.type)) for one in msgspec.structs.fields(RunRecord)]
_Columns = msgspec.defstruct("_Columns", _COLUMNS)


class _TrialLine(Trial, frozen=True, kw_only=True):
    runs: _Columns  # type: ignore[valid-type]


class _RecordLine(Record, frozen=True, kw_only=True):
    trial: _TrialLine | None


_LINE = msgspec.json.Decoder(_RecordLine, strict=False)


def decode(line: bytes) -> Record:
    """The record of a line. Raises ValueError."""
    found = _LINE.decode(line)
    trial = None
    if found.trial is not None:
        columns = msgspec.structs.astuple(found.trial.runs)
        runs = tuple(starmap(RunRecord, zip(*columns, strict=True)))
        trial = Trial(**{**msgspec.structs.asdict(found.trial), "runs": runs})
    return Record(**{**msgspec.structs.asdict(found), "trial": trial})


def record_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file of records: number from 1, where it begins, and the line, with its line break unless it was
    cut short. Blank lines and a byte order mark, as editors leave them, are left out."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8)
            if content.strip():
                yield number, at + len(line) - len(content), content
            at += len(line)


class Outline(NamedTuple):
    """What is known of a record without reading it again: where its line lies, whether its cell is done, and of its
    trial the speed (tokens/s) and the time from the request to the last token (s)."""

    at: int
    size: int
    done: bool
    tokens_per_s: float | None
    duration_s: float


class _Times(msgspec.Struct, gc=False):
    emit_s: tuple[float, ...]


class _Brief(msgspec.Struct, gc=False):
    """As much of a record as an outline takes; the rest of the line is passed over."""

    config_hash: str
    trial: _Times | None
    predictor: dict[str, Any] | None = None


class Records(Mapping[str, Record]):
    """The records of a file by the hash of their cell, of several the last. Each is read when it is asked for: memory
    holds no sweep. Asking raises WorkloadError where a line turns out to be no record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outlines: dict[str, Outline] = {}

    def __getitem__(self, name: str) -> Record:
        known = self.outlines[name]
        with self.path.open("rb") as file:
            file.seek(known.at)
            line = file.read(known.size)
        try:
            return decode(line)
        except (ValueError, TypeError) as problem:
            text = f"{self.path}: the record of {name} is none ({problem}): remove its line, or choose another --out"
            raise WorkloadError(text) from None

    def __contains__(self, name: object) -> bool:
        return name in self.outlines

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)

    def done(self, name: str) -> bool:
        """Whether the cell of that hash need not be run again."""
        return name in self.outlines and self.outlines[name].done

    def note(self, record: "Record | _Brief", at: int, size: int) -> None:
        """That the line of a record lies there."""
        trial: Any = record.trial
        done = trial is not None or record.predictor is not None
        speed, end = (metrics.tokens_per_second(trial), metrics.duration_s(trial)) if trial is not None else (None, 0.0)
        self.outlines[record.config_hash] = Outline(at, size, done, speed, end)


class Store:
    """The records of a results folder. Raises WorkloadError when the folder or its records cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.records = Records(self.path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()  # It can be written, and keeps its time: nothing is.
            self._read()
        except OSError as problem:
            raise WorkloadError(f"{folder}: results cannot be written there: {problem.strerror}") from None

    def append(self, record: Record) -> None:
        """Add one record; it is the system's when this returns, so that ending this process does not lose it."""
        line = encode(record)
        try:
            with self.path.open("ab") as file:
                at = file.tell()
                file.write(line)
        except OSError as problem:
            raise WorkloadError(f"{self.path}: cannot be written: {problem.strerror}; nothing before is lost") from None
        self.records.note(record, at, len(line))

    def _read(self) -> None:
        for number, at, line in record_lines(self.path):
            if not line.endswith(b"\n"):
                os.truncate(self.path, at)
                break
            try:
                self.records.note(msgspec.json.decode(line, type=_Brief), at, len(line))
            except ValueError as problem:
                raise WorkloadError(
                    f"{self.path}: line {number} is not a record ({problem}): remove it, or choose another --out"
                ) from None


@cache
def environment() -> dict[str, Any]:
    """Where this runs: versions, machine, and the commit of a checkout."""
    import numpy

    return {
        "pipeinfer": pipeinfer.__version__,
        "git_sha": _git_sha(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": bound_cores(),
        "processor": _processor(),
    }


def stamped() -> dict[str, Any]:
    """The environment, and the time in UTC."""
    return {**environment(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _git_sha() -> str:
    try:
        command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "not a checkout"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
