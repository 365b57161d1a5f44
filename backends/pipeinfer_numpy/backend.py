"""The plug-in itself: from a model's name to its description, a stage or a tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from pipeinfer.engine.backend import ModelInfo, check_layers
from pipeinfer.engine.huggingface.checkpoint import Checkpoint
from pipeinfer.engine.huggingface.folder import find_folder
from pipeinfer.engine.huggingface.generation_config import end_tokens
from pipeinfer.engine.huggingface.tokenizer import HfTokenizer, open_tokenizer
from pipeinfer_numpy.config import LlamaConfig, read_config
from pipeinfer_numpy.model import LlamaStage
from pipeinfer_numpy.weights import read_weights

FLOAT_BYTES = 4


class NumpyBackend:
    """Llama models from Hugging Face folders, computed in float32. It has no options.

    NumPy's BLAS takes its thread count from the environment when the process starts (OPENBLAS_NUM_THREADS for the
    wheels on PyPI): one thread per rank is right wherever ranks share cores.
    """

    @staticmethod
    def prepare(models: Sequence[str]) -> None:
        """All that it takes is imported with this module."""

    def info(self, model: str) -> ModelInfo:
        folder = find_folder(model)
        config = read_config(folder)
        return ModelInfo(
            architecture=config.architectures[0],
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocabulary=config.vocab_size,
            vocabulary_digest=open_tokenizer(folder).digest(),
            context=config.max_position_embeddings,
            layer_bytes=FLOAT_BYTES * layer_parameters(config),
            head_bytes=FLOAT_BYTES * config.hidden_size * (config.vocab_size + 1),
            eos=end_tokens(folder, config.eos_token_id),
            embedding_bytes=FLOAT_BYTES * config.hidden_size * config.vocab_size,
            kv_bytes=2 * FLOAT_BYTES * config.kv_heads * config.head_size,
        )

    def load(self, model: str, layers: tuple[int, int], *, cells: int, sequences: int) -> LlamaStage:
        if cells < 1 or sequences < 1:
            raise ValueError(f"expected at least 1 cell and 1 sequence, came {cells} and {sequences}")
        folder = find_folder(model)
        config = read_config(folder)
        check_layers(layers, config.num_hidden_layers, model)
        return LlamaStage(config, read_weights(Checkpoint(folder), config, layers), cells=cells, sequences=sequences)

    def weight_files(self, model: str) -> list[Path]:
        return Checkpoint(find_folder(model)).present()

    def tokenizer(self, model: str) -> HfTokenizer:
        return open_tokenizer(find_folder(model))


def layer_parameters(config: LlamaConfig) -> int:
    attention = 2 * config.hidden_size * config.head_size * (config.num_attention_heads + config.kv_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
