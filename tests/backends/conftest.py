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
