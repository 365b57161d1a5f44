"""config.json of a Hugging Face Llama model."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipeinfer.engine.backend import BadModel

ARCHITECTURE = "LlamaForCausalLM"
Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]


class Llama3Scaling(msgspec.Struct, frozen=True):
    """The frequency scaling of Llama 3.1: wavelengths over the original context are stretched by `factor`."""

    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_position_embeddings: Positive


class LlamaConfig(msgspec.Struct, frozen=True):
    """What a stage needs of config.json, under the names of the file; its other fields are ignored."""

    architectures: list[str]
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    vocab_size: Positive
    rms_norm_eps: PositiveFloat
    max_position_embeddings: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> dict[str, Any]:
        """How positions are encoded; transformers 5 writes `rope_parameters`, before it was `rope_scaling`."""
        return self.rope_parameters or self.rope_scaling or {}

    @property
    def rope_kind(self) -> object:
        return self.rope.get("rope_type", self.rope.get("type", "default"))

    @property
    def rope_base(self) -> float:
        return msgspec.convert(self.rope.get("rope_theta", self.rope_theta), PositiveFloat)

    @property
    def llama3_scaling(self) -> Llama3Scaling | None:
        return msgspec.convert(self.rope, Llama3Scaling) if self.rope_kind == "llama3" else None


def read_config(folder: Path) -> LlamaConfig:
    """Read `folder`/config.json. Raises BadModel when it is missing, malformed, or of a model this backend has not."""
    path = folder / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=LlamaConfig)
        check(config)
    except OSError as error:
        raise BadModel(f"expected {path}, came {error.strerror}: give the folder of a Hugging Face model") from None
    except msgspec.ValidationError as error:
        raise BadModel(f"{path} is no Llama configuration: {error}; give the folder of a Llama model") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadModel(f"expected JSON in {path}, came something else ({error}): fetch the file again") from None
    except Unsupported as error:
        raise BadModel(f"{path}: {error}; choose another model or another backend") from None
    return config


class Unsupported(Exception):  # noqa: N818 - reads as what happened
    """A configuration that is well formed but that this backend cannot compute."""


def check(config: LlamaConfig) -> None:
    """Raises Unsupported, or msgspec.ValidationError for malformed rope parameters."""
    expect("architectures", config.architectures, [ARCHITECTURE])
    expect("hidden_act", config.hidden_act, "silu")
    expect("attention_bias", config.attention_bias, False)
    expect("mlp_bias", config.mlp_bias, False)
    if config.num_attention_heads % config.kv_heads:
        raise Unsupported(f"expected key-value heads that divide the {config.num_attention_heads} attention heads,"
                          f" came {config.kv_heads}")
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise Unsupported(f"expected attention heads that divide hidden_size {config.hidden_size},"
                          f" came {config.num_attention_heads}")
    if config.head_size % 2:
        raise Unsupported(f"expected an even head size, which RoPE halves, came {config.head_size}")
    check_rope(config)


def check_rope(config: LlamaConfig) -> None:
    if config.rope_kind not in ("default", "llama3"):
        raise Unsupported(f"expected rope scaling 'default' or 'llama3', came {config.rope_kind!r}")
    scaling = config.llama3_scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise Unsupported(f"expected low_freq_factor below high_freq_factor, came {scaling.low_freq_factor}"
                          f" and {scaling.high_freq_factor}")
    if not config.rope_base > 1:
        raise Unsupported(f"expected rope_theta above 1, came {config.rope_base}")


def expect(name: str, came: object, expected: object) -> None:
    if came != expected:
        raise Unsupported(f"expected {name} {expected!r}, came {came!r}")
