"""The chat template of a Hugging Face folder: chat_template.jinja, or what tokenizer_config.json says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeinfer.engine.backend import BadModel
from pipeinfer.engine.chat import ChatTemplate

FILE, DEFAULT = "chat_template.jinja", "default"


def chat_template_of(folder: Path, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """`settings` are those of the tokenizer. None where there is no template; raises BadModel for a broken one."""
    path = folder / FILE
    try:
        source = path.read_text("utf-8") if path.is_file() else settings.get("chat_template")
    except (OSError, UnicodeDecodeError) as problem:
        raise BadModel(f"expected a chat template in {path}, came {problem}: fetch the file again") from None
    if isinstance(source, list):  # several, for different purposes
        named = {each.get("name"): each.get("template") for each in source if isinstance(each, dict)}
        source = named.get(DEFAULT)
    return ChatTemplate(source, special_texts(settings)) if isinstance(source, str) else None


def special_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by their names, `bos_token` and the like."""
    further = settings.get("extra_special_tokens")
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    named |= further if isinstance(further, dict) else {}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
