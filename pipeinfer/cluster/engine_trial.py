"""An engine tried out, in a process of its own since it may die of it: `python -m pipeinfer.cluster.engine_trial NAME`.

Each thing that is tried is written on a line before it is, so that the last line says what it died of.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeinfer.engine.backend import Batch, Hidden
from pipeinfer.errors import one_line
from pipeinfer.plugins import open_backend
from pipeinfer.testing.models import write_llama

ROWS = 40
"""More than one at once: engines have kernels of their own for that."""

FARTHEST = 0.5
"""How far from float32 a quantisation of few bits may come, as a part of the length of all logits."""

Trials = Mapping[str, Callable[[], tuple[Any, str]]]
"""What a backend offers as `trials(folder)`: a name, and how to get a backend and the model in `folder` for it."""


def main(name: str) -> int:
    print("loading", flush=True)
    try:
        backend = open_backend(name, {})
        if hasattr(backend, "trials"):
            with TemporaryDirectory() as folder:
                try_out(backend, write_llama(Path(folder) / "tiny", layers=1, hidden=256, ffn=256, kv_heads=4))
    except Exception as problem:  # of whatever kind: it is the finding
        print(one_line(problem) or type(problem).__name__, flush=True)
        return 1
    return 0


def try_out(backend: Any, folder: Path) -> None:
    """Every trial of the backend. Raises ValueError for one whose logits are not those of the model."""
    expected = logits(open_backend("numpy", {}), str(folder))
    trials: Trials = backend.trials(folder)
    for name, make in trials.items():
        print(name, flush=True)
        found = logits(*make())
        distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        if not distance <= FARTHEST:  # nor for what is no number
            raise ValueError(f"{name} gives other numbers: {distance:.2g} away, where {FARTHEST:g} is admitted")


def logits(backend: Any, model: str) -> Hidden:
    """Of a prompt at once and a token behind it, [ROWS + 1, vocabulary]."""
    stage = backend.load(model, (0, 1), cells=2 * ROWS, sequences=1)
    try:
        prompt = Batch(range(ROWS), range(ROWS), [(0,)] * ROWS, ROWS)
        after = Batch([ROWS], [ROWS], [(0,)], 1)
        return np.concatenate([stage.forward(batch, None, lambda: False) for batch in (prompt, after)])
    finally:
        stage.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
