"""Loads a rank's layers of a model, and says in one line why that fails."""

import msgspec

from pipeinfer.cluster.memory import free_bytes
from pipeinfer.engine.backend import ModelStage
from pipeinfer.engine.fingerprint import fingerprints
from pipeinfer.errors import LaunchError, one_line
from pipeinfer.plugins import open_backend


def load_stage(
    rank: int, backend: str, options: bytes, model: str, layers: tuple[int, int], *, cells: int, sequences: int
) -> ModelStage:  # fmt: skip
    """Layers [i, j) of `model`; `options` are the backend's, as JSON. Raises LaunchError."""
    try:
        opened = open_backend(backend, msgspec.json.decode(options), rank=rank)
        stage: ModelStage = opened.load(model, layers, cells=cells, sequences=sequences)
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as problem:
        raise LaunchError(f"rank {rank} cannot load {model}: {explained(problem)}") from problem
    return stage


def weights_here(rank: int, backend: str, options: bytes, model: str) -> dict[str, str]:
    """Digests of the files of `model` that are here, by their names. Raises LaunchError."""
    try:
        return fingerprints(open_backend(backend, msgspec.json.decode(options), rank=rank), model)
    except (ValueError, OSError) as problem:
        raise LaunchError(f"rank {rank} cannot read {model}: {explained(problem)}") from problem


def free_here(rank: int, backend: str, options: bytes) -> tuple[int, bool]:
    """Bytes that are free for a model of this backend, and whether all ranks of this host share them. Raises
    LaunchError."""
    try:
        opened = open_backend(backend, msgspec.json.decode(options), rank=rank)
        device = opened.device_bytes() if hasattr(opened, "device_bytes") else None
    except (ValueError, TypeError, OSError, ImportError) as problem:
        raise LaunchError(f"rank {rank} cannot use the backend {backend}: {explained(problem)}") from problem
    return (free_bytes(), True) if device is None else (device, False)


def explained(problem: BaseException) -> str:
    """What went wrong; with the name of its kind where the text alone does not say."""
    text = one_line(problem)
    return text if isinstance(problem, ValueError | LaunchError) and text else f"{type(problem).__name__}: {text}"
