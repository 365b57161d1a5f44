"""A model file in memory and contexts over it."""

import ctypes
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeinfer.engine.backend import BadModel
from pipeinfer_llamacpp.abort_poll import AbortPoll
from pipeinfer_llamacpp.abort_thread import AbortThread
from pipeinfer_llamacpp.hidden import HiddenStates, NodeNames
from pipeinfer_llamacpp.library import F16, F32, first_error, forget_errors, llama

FLASH_ATTENTION_OFF = 0
"""Flash attention adds up in an order of its own for many rows, so that a row's logits depend more on the rows it is
computed with. Where it is not switched off it is llama.cpp's own choice: wherever it can."""

KV_TYPES = {"f16": F16, "f32": F32}
"""How keys and values are stored: ggml's type numbers."""

MICRO_BATCH = 512
"""Rows that llama.cpp computes at a time: more than that gain nothing and cost buffers."""

WINDOW = "attention.sliding_window"


class LoadedModel:
    """A GGUF file opened by llama.cpp. Raises BadModel with the library's own reason when it does not load."""

    def __init__(
        self,
        path: Path,
        gpu_layers: int = 0,
        *,
        vocabulary_only: bool = False,
        as_stored: bool = False,
        settings: Mapping[str, int | str] | None = None,
    ) -> None:
        """`as_stored`: weights are not rearranged for faster kernels, and so are read from the file where they are
        needed. `settings` are metadata to be taken instead of the file's."""
        api = llama()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        parameters.vocab_only = vocabulary_only
        parameters.use_extra_bufts = not as_stored
        overrides = overrides_of(settings or {})
        parameters.kv_overrides = overrides
        forget_errors()
        self._path = path
        self.handle = api.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.handle:
            raise BadModel(f"expected a model that llama.cpp loads in {path}, came: {first_error()}; download it again"
                           " or update llama-cpp-python")
        self.close = weakref.finalize(self, api.llama_model_free, self.handle)

    @property
    def layers(self) -> int:
        return int(llama().llama_model_n_layer(self.handle))

    @property
    def hidden_size(self) -> int:
        return int(llama().llama_model_n_embd(self.handle))

    def check_memory(self) -> None:
        """Raises BadModel for a model that remembers by other means than KV cells: no tag can tell them apart."""
        api = llama()
        kinds = {"recurrent": "llama_model_is_recurrent", "hybrid": "llama_model_is_hybrid"}
        kinds["encoder-decoder"] = "llama_model_has_encoder"
        for kind, question in kinds.items():
            if hasattr(api, question) and getattr(api, question)(self.handle):
                raise BadModel(f"expected a model with KV cells alone in {self._path}, came a {kind} one: choose a"
                               " decoder-only transformer")

    def open_context(
        self,
        cells: int,
        *,
        sequences: int,
        threads: int,
        kv_type: str,
        flash: bool,
        abort: AbortPoll | AbortThread,
        hidden: HiddenStates | NodeNames | None,
    ) -> Any:
        """A context with KV cells that stops when `abort` says so and gives `hidden` what it asks for."""
        api = llama()
        parameters = api.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_batch = parameters.n_ubatch = min(cells, MICRO_BATCH)
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        if not flash:
            parameters.flash_attn_type = FLASH_ATTENTION_OFF
        parameters.type_k = parameters.type_v = KV_TYPES[kv_type]
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.abort_callback = ctypes.cast(abort.callback, type(parameters.abort_callback))
        parameters.abort_callback_data = abort.address
        if hidden is not None:
            parameters.cb_eval, parameters.cb_eval_user_data = hidden.callback, hidden.address
        forget_errors()
        context = api.llama_init_from_model(self.handle, parameters)
        if not context:
            raise BadModel(f"expected room for {cells} KV cells of {self._path}, came: {first_error()}; use fewer cells"
                           " or more stages")
        return context


def overrides_of(settings: Mapping[str, int | str]) -> Any:
    """llama.cpp's form of metadata that is not the file's: an array with an empty key at its end."""
    api = llama()
    overrides = (api.llama_model_kv_override * (len(settings) + 1))()
    for override, (key, value) in zip(overrides, settings.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, str):
            override.tag, override.value.val_str = api.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
        else:
            override.tag, override.value.val_i64 = api.LLAMA_KV_OVERRIDE_TYPE_INT, value
    return overrides
