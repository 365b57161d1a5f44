"""What `pipeinfer generate --chat` says to the model."""

from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.cluster.plan import Plan
from pipeinfer.commands.streams import checked_argument, read_text
from pipeinfer.engine.chat import ChatError, ChatTemplate, Message
from pipeinfer.plugins import open_backend


class Turn(msgspec.Struct):
    """What every message has; what else a template may want is left as it is."""

    role: str
    content: str | list[dict[str, Any]] | None = None


def check_conversation(*, chat: bool, raw: bool, system: str | None) -> None:
    """Raise ValueError where the options say two things."""
    if system is not None and not chat:
        raise ValueError("--system is for conversations: it goes with --chat or --messages")
    if raw and chat:
        raise ValueError("--raw is for a prompt as it is: leave it out, or --chat and --messages")


def read_conversation(prompt: str | None, system: str | None, path: Path | None) -> list[Message]:
    """The messages of a file, if there is one, a system message before them, the prompt as the user's last. Raises
    ValueError."""
    messages = read_messages(path) if path is not None else []
    if system is not None:
        if messages and messages[0]["role"] == "system":
            raise ValueError(f"{path} begins with a system message: leave out --system")
        messages = [{"role": "system", "content": checked_argument(system, "--system")}, *messages]
    if prompt is not None:
        messages.append({"role": "user", "content": prompt})
    if not messages or messages[-1]["role"] in ("system", "assistant"):
        raise ValueError("the user has the last word of a conversation: give a prompt, --file, or --messages with it")
    return messages


def read_messages(path: Path) -> list[Message]:
    """A JSON list of objects with `role` and `content`. Raises ValueError."""
    text = read_text(path)
    try:
        msgspec.json.decode(text, type=list[Turn])
        messages: list[Message] = msgspec.json.decode(text)
    except msgspec.DecodeError as problem:
        example = '[{"role": "user", "content": "Hello"}]'
        raise ValueError(f"expected a JSON list of messages in {path}, like {example}, came: {problem}") from problem
    return messages


def written(messages: list[Message], plan: Plan) -> str:
    """The conversation as the target's template writes it. Raises ChatError, BadModel."""
    backend = open_backend(plan.backend, plan.backend_options)
    template: ChatTemplate | None = backend.tokenizer(plan.target).chat_template()
    if template is None:
        raise ChatError(f"{plan.target} has no chat template, as models have that are made for conversations: leave out"
                        " --chat, or choose another model")  # fmt: skip
    return template.render(messages)
