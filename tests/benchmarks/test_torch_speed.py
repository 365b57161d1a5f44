"""Milliseconds per layer of width 512 over 128 cells: this backend's, transformers' own, and the bare matrix products.

pytest tests/benchmarks/test_torch_speed.py --benchmark-only --benchmark-columns=min,median
"""

from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeinfer.core.messages import TO_THE_END, KvSeqRm
from pipeinfer.engine.backend import Batch
from pipeinfer.testing import write_llama
from pipeinfer_torch import TorchBackend

if TYPE_CHECKING:
    from pipeinfer_torch.stage import TorchStage

HIDDEN, HEADS, KV_HEADS, FFN, CONTEXT = 512, 8, 4, 1376, 128
LAYERS = 6
ROWS = (1, 2, 4, 8)
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module", autouse=True)
def torch() -> Any:
    """Imported where it is measured, and not by every worker that collects tests."""
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'pipeinfer[torch]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"layers": LAYERS + 2, "hidden": HIDDEN, "heads": HEADS, "kv_heads": KV_HEADS, "ffn": FFN}
    return write_llama(tmp_path_factory.mktemp("speed") / "model", **shape)


def load(folder: Path, dtype: str) -> "TorchStage":
    """The layers between the first and the last, which have no embedding and no head."""
    stage = TorchBackend(device="cpu", dtype=dtype).load(str(folder), (1, LAYERS + 1), cells=1024, sequences=8)
    stage.forward(rows_from(0, CONTEXT), hidden(CONTEXT), lambda: False)
    return stage


def rows_from(start: int, rows: int) -> Batch:
    return Batch([7] * rows, range(start, start + rows), [(0,)] * rows, 0)


def hidden(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, HIDDEN), np.float32)


def measure(benchmark: Any, work: Callable[[], object]) -> None:
    """A round is six layers; the result says what one takes."""
    benchmark.pedantic(work, rounds=60, warmup_rounds=5)
    if benchmark.stats:
        benchmark.extra_info["ms_per_layer"] = round(1e3 * benchmark.stats.stats.median / LAYERS, 3)


def measure_forward(benchmark: Any, stage: "TorchStage", rows: int) -> None:
    batch, arrived = rows_from(CONTEXT, rows), hidden(rows)

    def forward() -> None:
        stage.forward(batch, arrived, lambda: False)
        stage.apply(KvSeqRm(0, CONTEXT, TO_THE_END))

    measure(benchmark, forward)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(group="6 layers")
def test_fused_layers(benchmark: Any, folder: Path, dtype: str, rows: int) -> None:
    measure_forward(benchmark, load(folder, dtype), rows)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(group="6 layers by transformers, with packed products")
def test_transformers_layers(
    benchmark: Any, folder: Path, dtype: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'pipeinfer[torch]'")
    monkeypatch.setattr("pipeinfer_torch.stage.FUSED", ())
    measure_forward(benchmark, load(folder, dtype), rows)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(group="matrix products of 6 layers")
def test_floor(
    benchmark: Any, torch: Any, dtype: str, rows: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no layer goes below, with the packed weights that this backend uses and with torch's plain ones."""
    if not packed:
        monkeypatch.setattr("pipeinfer_torch.linear.pack", lambda _weight: None)
    torch.set_num_threads(1)
    measure(benchmark, products(dtype, rows, HIDDEN, HIDDEN * KV_HEADS // HEADS, FFN, LAYERS))


def products(dtype: str, rows: int, hidden: int, kv: int, ffn: int, layers: int) -> Callable[[], None]:
    """The matrix products of so many layers of those widths, one after another."""
    import torch

    from pipeinfer_torch.linear import linear

    shapes = [(hidden + 2 * kv, hidden), (hidden, hidden), (2 * ffn, hidden), (hidden, ffn)] * layers
    kind = getattr(torch, dtype)
    taken = [(linear(torch.ones(shape, dtype=kind)), torch.ones(rows, shape[1], dtype=kind)) for shape in shapes]

    @torch.inference_mode()
    def multiply() -> None:
        for product, x in taken:
            product(x)

    return multiply


WIDE, WIDE_KV, WIDE_FFN, WIDE_LAYERS = 2048, 512, 5632, 2
"""Of a model of a billion parameters, but for the number of layers."""


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_layers_in_processor_time(benchmark: Any, tmp_path: Path, dtype: str, rows: int) -> None:
    """In turns with the products, so that what else the machine does falls on both; lower quartiles are printed."""
    heads = {"heads": WIDE // 64, "kv_heads": WIDE_KV // 64}
    model = write_llama(tmp_path / "wide", layers=WIDE_LAYERS + 2, hidden=WIDE, ffn=WIDE_FFN, **heads)
    loaded = TorchBackend(device="cpu", dtype=dtype).load(str(model), (1, WIDE_LAYERS + 1), cells=1024, sequences=8)
    rng = np.random.default_rng(0)
    loaded.forward(rows_from(0, CONTEXT), rng.standard_normal((CONTEXT, WIDE), np.float32), lambda: False)
    arrived = rng.standard_normal((rows, WIDE), np.float32)
    multiply = products(dtype, rows, WIDE, WIDE_KV, WIDE_FFN, WIDE_LAYERS)
    spent: dict[str, list[float]] = {"stage": [], "products": []}

    def one_of_each() -> None:
        start = process_time()
        loaded.forward(rows_from(CONTEXT, rows), arrived, lambda: False)
        middle = process_time()
        multiply()
        spent["products"].append(process_time() - middle)
        spent["stage"].append(middle - start)
        loaded.apply(KvSeqRm(0, CONTEXT, TO_THE_END))

    benchmark.pedantic(one_of_each, rounds=40, warmup_rounds=4)
    stage_s, products_s = (quantiles(spent[name], n=4)[0] for name in ("stage", "products"))
    print(f"\n{dtype} {rows} rows: {stage_s / products_s:.2f} of the products' processor time", end="")
