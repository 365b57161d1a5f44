"""generation_config.json of a Hugging Face folder: the further tokens that end a text."""

from pathlib import Path

import msgspec

from pipeinfer.engine.backend import BadModel

FILE = "generation_config.json"


class GenerationConfig(msgspec.Struct):
    """What is needed of the file, which may be absent."""

    eos_token_id: int | list[int] | None = None


def end_tokens(folder: Path, configured: int | list[int] | None) -> tuple[int, ...]:
    """The ids that end a text: those of config.json (`configured`), then those that generation_config.json adds. Raises
    BadModel."""
    return tuple(dict.fromkeys((*_listed(configured), *_listed(_read(folder).eos_token_id))))


def _read(folder: Path) -> GenerationConfig:
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=GenerationConfig)
    except FileNotFoundError:
        return GenerationConfig()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadModel(f"expected the settings of a generation in {path}, came {error}: fetch the file again") from None


def _listed(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
