"""What makes a cell the same cell: the hash of all that decides its result; and the record of one that was run."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import pipeinfer
from pipeinfer.assets import asset
from pipeinfer.modelling.acceptance import recorded
from pipeinfer.modelling.platform import platform_of
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.results.records import Record, Records, stamped
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.spans import Span
from pipeinfer.study.points import Cell, EmulatedCell, PredictorCell, SimCell, simulated_twin


def record_of(
    cell: Cell,
    trial: Trial | None,
    seconds: float,
    *,
    error: str = "",
    spans: Sequence[Span] = (),
    predictor: dict[str, Any] | None = None,
) -> Record:
    """What is kept of a cell that took so long to run, or that failed."""
    return Record(
        config_hash=config_hash(cell),
        config=msgspec.to_builtins(cell),
        fidelity="emulated" if isinstance(cell, EmulatedCell) else trial.fidelity if trial is not None else "real",
        seed=cell.setting.seed if isinstance(cell, SimCell) else cell.live.seed,
        trial=trial,
        error=error,
        spans=list(spans),
        seconds=seconds,
        environment=stamped(),
        predictor=predictor,
    )


def config_hash(cell: Cell) -> str:
    """Of the cell, and of what its names stand for: hardware and models, a profile, the built-in pair's files, a
    prompt's text."""
    if isinstance(cell, SimCell):
        name, behind = _platform(cell.cluster, cell.pair, cell.setting.trace)
        cell = msgspec.structs.replace(cell, cluster=name)  # Where its file lies decides nothing.
    else:
        texts = [] if isinstance(cell, PredictorCell) else [prompt_named(cell.prompt).text]
        behind = _json([*_model_files(), *_dates(cell.live.target, cell.live.draft), *texts])
    return hashlib.sha256(_json((pipeinfer.__version__, cell, behind))).hexdigest()[:16]


def simulated_s(cell: Cell, records: Records) -> float | None:
    """How long the generation of an emulated cell is in simulation (s); None of others, and where it is not known."""
    twin = records.outlines.get(config_hash(simulated_twin(cell))) if isinstance(cell, EmulatedCell) else None
    return twin.duration_s if twin is not None and twin.done else None


@cache
def _platform(cluster: str, pair: str, trace: str | None) -> tuple[str, msgspec.Raw]:
    """What a cluster is called, and all that these names stand for: encoded once, since a recorded trace is long."""
    where = platform_of(cluster, pair)
    return where.name, _json((*where, trace and recorded(trace)))


def _json(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value, order="sorted"))


@cache
def _model_files() -> list[str]:
    files = sorted(asset("workloads/builtin").rglob("*.safetensors"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def _dates(*models: str) -> list[tuple[int, int]]:
    """Size and date of models that are files or folders of the user's: too large to be read for a hash."""
    paths = [Path(model) for model in models if not model.startswith("builtin:")]
    found = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*")))]
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file in found if file.is_file()]
