"""The plug-in itself: from a model's name to its description, a stage or a tokenizer.

torch and transformers take seconds to import, so nothing here does before a backend is constructed.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pipeinfer.engine.backend import BadModel, ModelInfo
from pipeinfer.engine.huggingface.checkpoint import INDEX, Checkpoint
from pipeinfer.engine.huggingface.folder import find_folder
from pipeinfer.engine.huggingface.generation_config import end_tokens
from pipeinfer.engine.huggingface.tokenizer import HfTokenizer, open_tokenizer
from pipeinfer_torch.source import find_model

if TYPE_CHECKING:
    import torch

    from pipeinfer_torch.stage import TorchStage

# The libraries themselves are loaded with the first backend; without them the plug-in says at once what is missing.
for library in ("torch", "transformers", "huggingface_hub"):
    if find_spec(library) is None:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
TRIED = ("float32", "bfloat16")
DTYPES = ("auto", "float32", "bfloat16", "float16")

LOADING = Lock()
"""transformers sets torch's default dtype while it builds a model: for all of the process, and ranks may be threads."""


class TorchBackend:
    """Decoder-only models: Hugging Face folders, `builtin:target`, `builtin:draft`, or `org/name@revision` of the hub.

    `device` is "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one. `dtype` is what weights, cells and
    arithmetic are in; "auto" is float32 on a CPU, else what the checkpoint was saved as. `threads` is how many cores
    one rank computes on; torch counts them per process.
    """

    REINSTALL = "pip install --force-reinstall --no-cache-dir torch, in the release for this processor and GPU"

    def __init__(self, device: str = "auto", dtype: str = "auto", threads: int = 1) -> None:
        if not DEVICE.fullmatch(device):
            raise ValueError(f"expected device auto, cpu, cuda or cuda:N, came {device!r}")
        if dtype not in DTYPES:
            raise ValueError(f"expected dtype {', '.join(DTYPES)}, came {dtype!r}")
        if threads < 1:
            raise ValueError(f"expected 1 thread or more, came {threads}")
        self._device = find_device(device)
        self._dtype = dtype
        self._threads = threads

    @staticmethod
    def prepare(models: Sequence[str]) -> None:
        """A process that has looked for GPUs cannot be forked, and transformers may do so."""
        import torch

        if torch.version.cuda or torch.version.hip:
            return
        if not all(map(_is_plain, models)):
            import_module("transformers.activations")
        for module in ("pipeinfer_torch.skeleton", "pipeinfer_torch.stage"):
            import_module(module)

    def info(self, model: str) -> ModelInfo:
        from pipeinfer_torch.skeleton import Skeleton

        folder = find_model(model)
        with LOADING:
            skeleton = Skeleton(folder, self._device, self._dtype)
        config = skeleton.config
        return ModelInfo(
            architecture=skeleton.architecture,
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocabulary=config.vocab_size,
            vocabulary_digest=open_tokenizer(folder).digest(),
            context=config.max_position_embeddings,
            layer_bytes=skeleton.layer_bytes(),
            head_bytes=skeleton.head_bytes(),
            eos=end_tokens(folder, config.eos_token_id),
            precision=str(skeleton.dtype).removeprefix("torch."),
            embedding_bytes=skeleton.embedding_bytes(),
            kv_bytes=skeleton.kv_bytes(),
        )

    def device_bytes(self) -> int | None:
        """What is free on the GPU that holds the models; None: they are in the host's memory."""
        from pipeinfer_torch.memory import free_bytes

        return free_bytes(self._device) if self._device.type == "cuda" else None

    def load(self, model: str, layers: tuple[int, int], *, cells: int, sequences: int) -> "TorchStage":
        import torch

        from pipeinfer_torch.stage import load_stage

        if cells < 1 or sequences < 1:
            raise ValueError(f"expected at least 1 cell and 1 sequence, came {cells} and {sequences}")
        torch.set_num_threads(self._threads)
        try:
            with LOADING:
                return load_stage(model, layers, self._device, self._dtype, cells=cells, sequences=sequences)
        except torch.OutOfMemoryError:
            raise BadModel(f"expected room for layers [{layers[0]}, {layers[1]}) of {model} and {cells} KV cells on"
                           f" {self._device}, came out of memory: give this rank fewer layers or cells") from None

    def weight_files(self, model: str) -> list[Path]:
        return Checkpoint(find_model(model, [INDEX])).present()

    def trials(self, folder: Path) -> dict[str, Callable[[], tuple["TorchBackend", str]]]:
        """For `pipeinfer doctor`: the Llama model in `folder` in the number formats that every device has."""

        def in_format(dtype: str) -> tuple[TorchBackend, str]:
            return TorchBackend(dtype=dtype), str(folder)

        return {dtype: partial(in_format, dtype) for dtype in TRIED}

    def tokenizer(self, model: str) -> HfTokenizer:
        return open_tokenizer(find_model(model))


def find_device(name: str) -> "torch.device":
    """Raises ValueError for a GPU that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"expected one of {torch.cuda.device_count()} CUDA devices, came {name!r}: choose device=cpu")
    return device


def _is_plain(model: str) -> bool:
    """Whether it lies in a folder and is read without transformers. Of the hub nothing is looked for: that takes
    threads, and whoever loads the model does."""
    from pipeinfer_torch.plain_config import read_plain

    try:
        return read_plain(find_folder(model)) is not None
    except BadModel:
        return False
