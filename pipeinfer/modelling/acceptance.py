"""How good a simulated draft is, by name (workloads/acceptance.toml): a level or a rate, with a position difficulty or
without, in phases, or a trace recorded from real models."""

from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from pipeinfer.assets import asset
from pipeinfer.runtime.oracle import Difficulty, Oracle, Phases, Trace, independent, phased, read_trace, varied
from pipeinfer.workload import Count, FileEntry, Rate, WorkloadError, load, pick, suggest

FILE = "workloads/acceptance.toml"
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Acceptance(msgspec.Struct, frozen=True):
    """The chance that the target agrees with a drafted token, given that it agreed with all before it. Without more it
    is i.i.d., and the draft's confidence tells nothing. `difficulty`: it differs from position to position. `trace`
    (the name of a recorded one, or a file's path): what is accepted was recorded, and `rate` is what came of it.
    `phases`: it changes along the text, and `rate` is the mean."""

    rate: float
    difficulty: Difficulty | None = None
    trace: str | None = None
    phases: Phases | None = None

    def oracle(self, *, seed: int, start: int, length: int) -> Oracle:
        """What decides which drafts are accepted, in a text whose first generated token is at position `start`. `seed`
        draws it; of a recorded trace it picks the text. Raises ValueError when the trace cannot be read."""
        if self.trace is not None:
            return recorded(self.trace).text(seed, start)
        if self.phases is not None:
            return phased(self.phases, seed=seed, start=start, length=length)
        if self.difficulty is not None:
            return varied(self.rate, self.difficulty, seed=seed, length=length)
        return independent(self.rate, seed=seed, length=length)

    def chance(self, position: int, start: int) -> float:
        """That of a position, as far as it is an assumption and no draw: of that phase, or of all."""
        return self.rate if self.phases is None else self.phases.rate(position, start)


class _Level(FileEntry, frozen=True):
    rate: Rate
    source: str


class _Difficulty(FileEntry, frozen=True):
    spread: Share
    noise: Annotated[float, msgspec.Meta(ge=0)]
    source: str


class _Phases(FileEntry, frozen=True):
    levels: Annotated[list[str], msgspec.Meta(min_length=1)]
    tokens: Count
    source: str


class _Recorded(FileEntry, frozen=True):
    title: str
    file: str
    source: str


class _File(FileEntry, frozen=True):
    level: dict[str, _Level]
    difficulty: dict[str, _Difficulty]
    phases: dict[str, _Phases]
    trace: dict[str, _Recorded]


def acceptance(text: str) -> Acceptance:
    """From a sweep's or a command's word: a level ("good") or a rate ("0.3"), i.i.d.; either after the name of a
    difficulty ("varied good"); or the name of phases ("alternating") or of a recorded trace ("builtin-greedy"). Raises
    WorkloadError."""
    file = _file()
    if text in file.trace:
        return Acceptance(recorded(text).acceptance, trace=text)
    if text in file.phases:
        known = file.phases[text]
        rates = tuple(_rate(level, set(file.level)) for level in known.levels)
        return Acceptance(sum(rates) / len(rates), phases=Phases(text, rates, known.tokens))
    kind, _, level = text.rpartition(" ")
    if not kind:
        return Acceptance(_rate(level, {*file.level, *file.phases, *file.trace}))
    found = pick(file.difficulty, kind, "difficulty")
    return Acceptance(_rate(level, set(file.level)), Difficulty(found.spread, found.noise))


def _rate(level: str, known: set[str]) -> float:
    try:
        rate = float(level)
    except ValueError:
        levels = _file().level
        if level not in levels:
            raise WorkloadError(f'no acceptance "{level}"{suggest(level, known)}') from None
        return levels[level].rate
    if not 0 <= rate < 1:
        raise WorkloadError(f"acceptance {level}: expected 0 to below 1")
    return rate


def recorded(trace: str) -> Trace:
    """A recorded trace, by its name or its path. Raises ValueError when there is none."""
    known = _file().trace
    return _read(asset(f"workloads/traces/{known[trace].file}") if trace in known else Path(trace))


def is_recorded(drafts: str) -> bool:
    """Whether this, of a place, is a recorded trace, and not what is assumed of drafts."""
    return drafts not in ("", "varied", *_file().phases)


def trace_title(trace: str) -> str:
    """For a caption."""
    known = _file().trace
    return known[trace].title if trace in known else f"recorded trace {trace}"


@cache
def _file() -> _File:
    return load(asset(FILE), _File)


@cache
def _read(path: Path) -> Trace:
    return read_trace(path)
