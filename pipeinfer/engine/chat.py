"""Conversations as a model's makers write them for it: its chat template, rendered."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.errors import one_line

PROGRAM = Path(__file__).with_name("chat_process.py")
CPU_S, PATIENCE_S = 5, 30.0
"""Seconds that rendering may compute, and that it may take however busy the machine is."""

MEMORY_BYTES = 1 << 30

Message = Mapping[str, Any]


class ChatError(ValueError):
    """The conversation cannot be written; one line says why."""


class ChatTemplate(msgspec.Struct, frozen=True):
    """A model's template, in Jinja, and the special tokens that it may name (`bos_token` and the like)."""

    source: str
    special_tokens: Mapping[str, str] = {}

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation, and the beginning of the model's answer. It has the special tokens that belong there: none
        are to be put around it. Raises ChatError where the template fails, refuses the messages, or takes too long."""
        plain = [{name: value for name, value in message.items() if value is not None} for message in messages]
        answer = self._answer({"messages": plain, "tools": None, "documents": None, "add_generation_prompt": True})
        if "error" in answer:
            raise ChatError(f"the model's chat template {one_line(answer['error'])}")
        text: str = answer["text"]
        return text

    def _answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """What the process says in which the template is rendered."""
        given = {**self.special_tokens, **variables}
        request = json.dumps(
            {"source": self.source, "variables": given, "cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES}
        )
        try:
            done = subprocess.run([sys.executable, "-P", str(PROGRAM)], input=request.encode(), capture_output=True,
                                  timeout=PATIENCE_S, check=False)  # fmt: skip
            answer: dict[str, Any] = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):  # ended by its limits it has said nothing
            return {"error": f"comes to no end: it takes more than {CPU_S} s or {MEMORY_BYTES >> 20} MiB"}
        return answer
