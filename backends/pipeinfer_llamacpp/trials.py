"""Tiny models in the common quantisations, for `pipeinfer doctor`: does this build multiply on this processor?"""

from pathlib import Path

from pipeinfer.engine.backend import BadModel
from pipeinfer_llamacpp.export import export_gguf
from pipeinfer_llamacpp.library import llama

KINDS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0",
         "q4_K": "MOSTLY_Q4_K_M", "q5_K": "MOSTLY_Q5_K_M", "q6_K": "MOSTLY_Q6_K", "iq4_nl": "MOSTLY_IQ4_NL"}
"""By the name of the matrices' type, llama.cpp's name of a file that has it."""

REINSTALL = (
    "CFLAGS=-U__AMX_INT8__ CXXFLAGS=-U__AMX_INT8__ pip install --force-reinstall --no-cache-dir --no-deps"
    " --no-binary llama-cpp-python llama-cpp-python"
)
"""Built here for this processor, but for AMX, which GCC 12 gets wrong."""


def write_quantised(folder: Path, kind: str) -> str:
    """Write the Llama model in `folder` as that kind, and give the file. Raises BadModel when llama.cpp refuses."""
    plain, path = folder / "plain.gguf", folder / f"{kind}.gguf"
    if not plain.exists():
        export_gguf(folder, plain, "f32")
    api = llama()
    wish = api.llama_model_quantize_default_params()
    wish.ftype = getattr(api, f"LLAMA_FTYPE_{KINDS[kind]}")
    wish.nthread, wish.pure = 1, True
    if api.llama_model_quantize(str(plain).encode(), str(path).encode(), wish):
        raise BadModel(f"expected llama.cpp to write {kind}, came a refusal: install llama-cpp-python again")
    return str(path)
