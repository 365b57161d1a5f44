"""Raw data: one JSON object per trial, one line each, appended and flushed. Everything else is derived from it.

A cell that has a record is not run again; `pipeinfer/study/identity.py` says what makes it the same cell. A last line
cut short by a kill or a full disk is dropped, and its cell run again.
"""

import codecs
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import pipeinfer
from pipeinfer.assets import PACKAGE
from pipeinfer.results.trial import RunRecord, Trial
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


def numbered(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a file of records, each with its number in the file. Blank lines and a byte order mark at the
    beginning, as editors leave them, are no records."""
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def decode(line: bytes) -> Record:
    """The record of a line. Raises ValueError."""
    found = msgspec.json.decode(line)
    if not isinstance(found, dict):
        raise ValueError("expected an object")
    trial = found.get("trial")
    if isinstance(trial, dict) and isinstance(trial.get("runs"), dict):
        names = list(trial["runs"])
        trial["runs"] = [dict(zip(names, row, strict=True)) for row in zip(*trial["runs"].values(), strict=True)]
    return msgspec.convert(found, Record, strict=False)


class Store:
    """The records of a results folder. Raises WorkloadError when the folder or its records cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.records: dict[str, Record] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._read()
            self.path.touch()
        except OSError as problem:
            raise WorkloadError(f"{folder}: results cannot be written there: {problem.strerror}") from None

    def append(self, record: Record) -> None:
        """Add one record; it is the system's when this returns, so that ending this process does not lose it."""
        try:
            with self.path.open("ab") as file:
                file.write(encode(record))
        except OSError as problem:
            raise WorkloadError(f"{self.path}: cannot be written: {problem.strerror}; nothing before is lost") from None
        self.records[record.config_hash] = record

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in numbered(content[:whole]):
            try:
                record = decode(line)
            except (ValueError, TypeError) as problem:
                raise WorkloadError(
                    f"{self.path}: line {number} is not a record ({problem}): remove it, or choose another --out"
                ) from None
            self.records[record.config_hash] = record


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
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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
