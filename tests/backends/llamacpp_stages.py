"""What the tests of the llama.cpp backend share: stages opened, run and closed."""

from itertools import pairwise

import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")

import llama_cpp as llama_cpp

from pipeinfer.testing.backends import chain, never
from pipeinfer_llamacpp import LlamaCppBackend

TOKENS = tuple((7 * step * step + 3) % 300 for step in range(24))


def backend(shared, **options):
    return LlamaCppBackend(cache=str(shared / "cache"), **options)


def open_stages(opener, path, count=1, *, cells=64, sequences=8):
    layers = opener.info(str(path)).layers
    borders = [stage * layers // count for stage in range(count + 1)]
    return [opener.load(str(path), share, cells=cells, sequences=sequences) for share in pairwise(borders)]


def run(stages, batch):
    """Through the stages one after another."""
    arrived = None
    for stage in stages:
        arrived = stage.forward(batch, arrived, never)
    return arrived


def close(*groups):
    for stages in groups:
        for stage in stages:
            stage.close()


def logits(opener, path, tokens=TOKENS):
    stages = open_stages(opener, path)
    rows = run(stages, chain(tokens))
    close(stages)
    return rows


def aborts_in_mid_compute():
    """An abort check that is true from its second call on: the first is before the computation."""
    looks = iter([False])
    return lambda: next(looks, True)
