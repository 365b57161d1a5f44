"""From what a request says to the ids that the model is fed."""

from typing import NamedTuple

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from pipeinfer.engine.backend import Tokenizer
from pipeinfer.engine.chat import ChatError, ChatTemplate
from pipeinfer.serve.refusal import Refusal
from pipeinfer.serve.request_schema import ChatRequest, CompletionRequest

TEMPLATES_AT_ONCE = 2
"""Chat templates are rendered in processes of their own."""


class ServedModel(NamedTuple):
    """The target as clients know it: `limit` is the longest text (prompt and answer, tokens), `vocabulary` the number
    of ids, `ends` the ids that end a text; `template` is None where it is not made for conversations."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    limit: int
    vocabulary: int
    ends: tuple[int, ...]


class Prompts:
    """Writes conversations and makes ids of texts, beside the event loop. Raises Refusal."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._templates = CapacityLimiter(TEMPLATES_AT_ONCE)

    async def of_completion(self, asked: CompletionRequest) -> list[list[int]]:
        found = []
        for prompt in asked.prompts():
            ids = prompt if isinstance(prompt, list) else await run_sync(self._model.tokenizer.encode, prompt)
            found.append(self._checked(ids, "prompt"))
        return found

    async def of_chat(self, asked: ChatRequest) -> list[list[int]]:
        template = self._model.template
        if template is None:
            raise Refusal(400, f"{self._model.name} has no chat template, as models for conversations have: use"
                               " /v1/completions", code="no_chat_template")  # fmt: skip
        conversation = asked.conversation()
        try:
            text = await run_sync(template.render, conversation, limiter=self._templates)
        except ChatError as problem:
            raise Refusal(400, str(problem), param="messages") from None
        ids = await run_sync(lambda: self._model.tokenizer.encode(text, add_special=False))
        return [self._checked(ids, "messages")]

    def room(self, prompts: list[list[int]]) -> int:
        """Tokens that may follow the longest of them."""
        return self._model.limit - max(map(len, prompts))

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if not ids:
            raise Refusal(400, f"{param}: expected at least one token", param=param)
        if max(ids) >= self._model.vocabulary:
            known = f"0..{self._model.vocabulary - 1}"
            raise Refusal(400, f"{param}: {self._model.name} knows tokens {known}, came {max(ids)}", param=param)
        if len(ids) >= self._model.limit:
            raise Refusal(400, f"{param}: {len(ids)} tokens leave no room for an answer in the {self._model.limit} that"
                               f" {self._model.name} is served with: shorten it", param=param,
                          code="context_length_exceeded")  # fmt: skip
        return ids
