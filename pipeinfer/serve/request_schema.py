"""What clients may ask: the fields of OpenAI's completions and chat completions, and which of them are refused.

A field that would change the text and is not understood is refused by name; nothing is left out in silence but what
has no bearing on the text.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from pipeinfer.engine.sampling import SEEDS, Sampling
from pipeinfer.serve.refusal import Refusal

MOST_CHOICES = 32
"""Texts of one request: its prompts times `n`."""

MOST_STOPS, LONGEST_STOP = 16, 256

MOST_TOKENS = 2**31 - 1

LEAST_TEMPERATURE = 1e-4
"""Below it the likeliest token is taken: logits over less than that are no numbers."""

WITHOUT_BEARING = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "request_id", "safety_identifier", "service_tier", "store",
    "user",
}  # fmt: skip
"""Fields that change no text."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "length_penalty": (1,), "logit_bias": ({},),
    "logprobs": (False,), "min_p": (0,), "min_tokens": (0,), "presence_penalty": (0,), "repetition_penalty": (1,),
    "response_format": ({"type": "text"},), "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],),
    "top_logprobs": (0,), "use_beam_search": (False,),
}  # fmt: skip
"""Fields that are understood where they change nothing: the values that do so. Others are refused."""

StopString = Annotated[str, Meta(max_length=LONGEST_STOP)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_usage`: a last chunk with the usage; `continuous_usage_stats`: every chunk has it."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class Extension(msgspec.Struct, forbid_unknown_fields=True):
    """What no other server has: how the request is decoded, within how many seconds, and whether the answer's metrics
    tell its token ids."""

    strategy: Annotated[str, Meta(max_length=100)] | None = None
    options: dict[Annotated[str, Meta(max_length=100)], bool | int | float | str] | None = None
    deadline_s: Annotated[float, Meta(gt=0, le=86400)] | None = None
    token_ids: bool = False


class TextRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints take. None is a field that was left out."""

    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0
    seed: Annotated[int, Meta(ge=-(2**63))] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MOST_STOPS)] = []
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)
    ignore_eos: bool = False
    pipeinfer: Extension = msgspec.field(default_factory=Extension)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def sampling(self, seed: int) -> Sampling:
        """With the noise of `seed`, which wraps around. Raises Refusal."""
        temperature = 0.0 if 0 < self.temperature < LEAST_TEMPERATURE else self.temperature
        try:
            return Sampling(temperature, max(self.top_k, 0), self.top_p, seed % SEEDS)
        except ValueError as problem:
            raise Refusal(400, str(problem), param=str(problem).partition(" ")[0]) from None


class CompletionRequest(TextRequest, kw_only=True, forbid_unknown_fields=True):
    """`/v1/completions`: one prompt or several, as text or as token ids."""

    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1)]

    def prompts(self) -> list[str | list[int]]:
        """Raises Refusal on a list that mixes kinds."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(one) for one in self.prompt}
        if len(kinds) > 1:
            raise Refusal(400, "prompt: expected texts, or token ids, not both in one list", param="prompt")
        if kinds == {int}:
            return [[one for one in self.prompt if isinstance(one, int)]]
        if len(self.prompt) * self.n > MOST_CHOICES:
            raise Refusal(400, f"{len(self.prompt)} prompts with n = {self.n}: expected at most {MOST_CHOICES} texts"
                               " of one request", param="prompt")  # fmt: skip
        return [one for one in self.prompt if not isinstance(one, int)]


class MessagePart(msgspec.Struct, forbid_unknown_fields=True):
    """A piece of a message's content; only text is understood."""

    type: str
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: str
    content: str | list[MessagePart]
    name: str | None = None

    def message(self, number: int) -> dict[str, str]:
        """As a chat template takes it. Raises Refusal."""
        place = f"messages[{number}]"
        role = {"developer": "system"}.get(self.role, self.role)
        if role not in ("system", "user", "assistant"):
            raise Refusal(400, f"{place}.role: expected system, developer, user or assistant, came {self.role!r}",
                          param=f"{place}.role")  # fmt: skip
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        for part in self.content:
            if part.type != "text":
                raise Refusal(400, f"{place}.content: expected parts of type text, came {part.type!r}",
                              param=f"{place}.content")  # fmt: skip
        return {"role": role, "content": "".join(part.text for part in self.content)}


class ChatRequest(TextRequest, kw_only=True, forbid_unknown_fields=True):
    """`/v1/chat/completions`: a conversation, of which the model writes the next message."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None = None

    def conversation(self) -> list[dict[str, str]]:
        """Raises Refusal where another than the user has the last word."""
        messages = [turn.message(number) for number, turn in enumerate(self.messages)]
        if messages[-1]["role"] != "user":
            raise Refusal(400, "the user has the last word of a conversation: expected a last message of role user,"
                               f" came {messages[-1]['role']}", param="messages")  # fmt: skip
        return messages


Kind = TypeVar("Kind", bound=TextRequest)


def read(body: bytes, kind: type[Kind]) -> Kind:
    """The body of a request. Raises Refusal on whatever is not understood."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise Refusal(400, f"expected a JSON object, came: {problem}") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"expected a JSON object, came {type(found).__name__}")
    fields = {name: value for name, value in found.items() if value is not None and name not in WITHOUT_BEARING}
    for name in fields.keys() & NEUTRAL.keys():
        value = fields.pop(name)
        if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in
                   NEUTRAL[name]):  # fmt: skip
            raise Refusal(400, f"{name} is not supported: leave it out", param=name, code="unsupported_value")
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise _refusal(str(problem)) from None


def _refusal(said: str) -> Refusal:
    """msgspec's message as one about a field: what is unknown, missing or of another kind."""
    what, _, place = said.partition(" - at `$")
    place = place.strip("`.")
    if what.startswith("Object contains unknown field"):
        name = ".".join(filter(None, [place, what.split("`")[1]]))
        return Refusal(400, f"unrecognised field: {name}", param=name, code="unknown_parameter")
    if what.startswith("Object missing required field"):
        name = ".".join(filter(None, [place, what.split("`")[1]]))
        return Refusal(400, f"{name} is missing", param=name, code="missing_required_parameter")
    return Refusal(400, f"{place}: {what[0].lower()}{what[1:]}", param=place or None)
