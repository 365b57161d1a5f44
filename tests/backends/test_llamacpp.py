"""llama.cpp as pipeline stages: the conformance kit, architectures and quantisations, aborts, and files it refuses."""

import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")

from pipeinfer.testing import BackendConformance, write_llama
from pipeinfer_llamacpp import LlamaCppBackend
from pipeinfer_llamacpp.export import export_gguf
from pipeinfer_llamacpp.library import llama


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


class TestConformance(BackendConformance):
    rtol = 1e-5

    @pytest.fixture(autouse=True)
    def folder(self, models):
        self._models = models

    def backend(self):
        return LlamaCppBackend(kv_type="f32", cache=str(self._models / "cache"))

    def model(self, tmp_path):
        path = self._models / "conformance.gguf"
        if not path.exists():
            export_gguf(write_llama(tmp_path / "model"), path, "f32")
        return str(path)

    def loaded_bytes(self, load):
        stage = load()
        held = llama().llama_model_size(stage._model.handle)
        stage.close()
        return held
