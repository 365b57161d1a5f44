"""Milliseconds per forward of the built-in target's shape at 200 cells of context, and of its bare matrix products.

    OPENBLAS_NUM_THREADS=1 pytest -o addopts= tests/backends/test_numpy_speed.py
"""

import numpy as np
import pytest

from pipeinfer.core.messages import KvSeqRm
from pipeinfer.engine.backend import Batch
from pipeinfer.testing import write_llama
from pipeinfer_numpy import NumpyBackend
from pipeinfer_numpy.model import linear

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY = 8, 256, 8, 4, 688, 2048
CONTEXT = 200
ROWS = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    shape = {"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "kv_heads": KV_HEADS, "ffn": FFN, "vocab": VOCABULARY}
    folder = write_llama(tmp_path_factory.mktemp("speed") / "model", **shape)
    stage = NumpyBackend().load(str(folder), (0, LAYERS), cells=1024, sequences=32)
    stage.forward(rows_from(0, CONTEXT), None, lambda: False)
    return stage


def rows_from(start, rows):
    return Batch([7] * rows, range(start, start + rows), [(0,)] * rows, rows)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.benchmark(group="forward")
def test_forward(benchmark, stage, rows):
    def forward():
        stage.forward(rows_from(CONTEXT, rows), None, lambda: False)
        stage.apply(KvSeqRm(0, CONTEXT, -1))

    benchmark.pedantic(forward, rounds=100, warmup_rounds=5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.benchmark(group="bare matrix products")
def test_floor(benchmark, rows):
    """What no implementation on this BLAS goes below: every weight of the model times as many rows."""
    per_layer = [(HIDDEN, 2 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * FFN), (FFN, HIDDEN)]
    shapes = [*per_layer * LAYERS, (HIDDEN, VOCABULARY)]
    products = [(np.ones((rows, size[0]), np.float32), np.ones(size, np.float32)) for size in shapes]

    def multiply():
        for x, weight in products:
            linear(x, weight)

    benchmark.pedantic(multiply, rounds=100, warmup_rounds=5)
