"""The bodies of responses and stream chunks, as OpenAI's clients read them."""

import time
import uuid
from typing import Any

from pipeinfer.results.metrics import cancelled
from pipeinfer.serve.answers import FINISH_REASONS, AnswerChoice, Answers
from pipeinfer.serve.speculative_metrics import speculative_decoding


class Responses:
    """One response, whole or in chunks, to a request of either endpoint."""

    def __init__(self, answers: Answers, *, model: str, chat: bool, token_ids: bool) -> None:
        self._answers = answers
        self._token_ids = token_ids
        self._chat = chat
        prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._kind = kind

    def whole(self) -> dict[str, Any]:
        """Once all choices have ended."""
        choices = [self._choice(choice, self._message(choice.text)) for choice in self._answers.choices]
        return {**self._head, "object": self._kind, "choices": choices, "usage": self.usage(),
                "metrics": self.metrics()}  # fmt: skip

    def chunk(self, choice: AnswerChoice, text: str, *, first: bool = False) -> dict[str, Any]:
        """Text that a choice has grown by; with its reason once it has ended."""
        return self._chunk([self._choice(choice, self._delta(text, first=first))])

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._chunk([]), "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens of prompts and texts; `cached_tokens` of the prompts were not computed anew. Of several choices of one
        prompt it counts once."""
        prompts = {id(choice.prompt): choice for choice in self._answers.choices}.values()
        asked = sum(len(choice.prompt) for choice in prompts)
        cached = sum(_cached(choice) for choice in prompts)
        generated = sum(len(choice.token_ids) for choice in self._answers.choices)
        return {"prompt_tokens": asked, "completion_tokens": generated, "total_tokens": asked + generated,
                "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        """How drafting went in all choices together, in vLLM's words and in ours."""
        runs = [run for choice in self._answers.choices if choice.record for run in choice.record.runs]
        return {"speculative_decoding": speculative_decoding(runs), "pipeinfer": self._own_metrics()}

    def _own_metrics(self) -> dict[str, Any]:
        choices = [_own(choice) for choice in self._answers.choices]
        if self._token_ids:
            for told, choice in zip(choices, self._answers.choices, strict=True):
                told["token_ids"] = choice.token_ids
        return {"seed": self._answers.seed, "choices": choices}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._chat else self._kind, "choices": choices}

    def _choice(self, choice: AnswerChoice, text: dict[str, Any]) -> dict[str, Any]:
        reason = FINISH_REASONS.get(choice.reason)
        return {"index": choice.index, **text, "finish_reason": reason, "logprobs": None}

    def _message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}

    def _delta(self, text: str, *, first: bool) -> dict[str, Any]:
        if not self._chat:
            return {"text": text}
        role = {"role": "assistant"} if first else {}
        return {"delta": {**role, "content": text}}


def _cached(choice: AnswerChoice) -> int:
    return choice.record.cached_tokens if choice.record else 0


def _own(choice: AnswerChoice) -> dict[str, Any]:
    """What a choice took, in seconds and runs; None where it has no such thing."""
    record = choice.record
    if record is None:
        return {"reason": choice.reason}
    emitted = record.emit_s
    span = emitted[-1] - emitted[0] if emitted else 0.0
    return {
        "reason": choice.reason, "strategy": record.strategy, "waited_s": record.began_s,
        "ttft_s": emitted[0] if emitted else None,
        "tokens_per_second": (len(emitted) - 1) / span if span > 0 else None,
        "runs": len(record.runs), "cancelled_runs": sum(map(cancelled, record.runs)),
        "drafted_tokens": sum(run.drafted for run in record.runs),
        "draft_cached_tokens": record.draft_cached_tokens,
    }  # fmt: skip
