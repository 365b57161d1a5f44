"""llama.cpp as a backend: stages of any GGUF model of the architectures in `cut.py`. Start reading at `stage.py`."""

from pipeinfer_llamacpp.backend import LlamaCppBackend

__all__ = ["LlamaCppBackend"]
