"""The texts of one HTTP request as they grow: its tickets' events, brought from the head's thread to the event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import NamedTuple, Self

from pipeinfer.engine.backend import Tokenizer
from pipeinfer.engine.sampling import Sampling
from pipeinfer.engine.text_stream import TextStream
from pipeinfer.errors import LaunchError
from pipeinfer.serve.events import Failed, Paused, RequestRecord, Resumed, ServiceEvent, Tokens
from pipeinfer.serve.refusal import Refusal
from pipeinfer.serve.request_schema import TextRequest
from pipeinfer.serve.service import Service, Ticket
from pipeinfer.serve.world import QueueFull, ServiceEnded

QUIET_S = 15.0
"""After so long without a token a stream says that it lives, which also shows whether its reader does."""

FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "deadline": "length"}
"""How a text ended, in OpenAI's words. Whatever else ends it is an error."""


class Grown(NamedTuple):
    """`text` more of a choice, certain by now; `ended`: it has no more. `comment` is for people who read the stream."""

    choice: "AnswerChoice | None" = None
    text: str = ""
    comment: str = ""
    ended: bool = False


class AnswerChoice:
    """One of the texts that a request wants."""

    def __init__(self, index: int, prompt: Sequence[int], sampling: Sampling, text: TextStream) -> None:
        self.index = index
        self.prompt = prompt
        self.sampling = sampling
        self.ticket: Ticket | None = None
        self.record: RequestRecord | None = None
        self.reason = ""
        self._text = text
        self._written = 0

    @property
    def token_ids(self) -> list[int]:
        """What was generated, up to where the text ends."""
        return self._text.tokens

    @property
    def text(self) -> str:
        return self._text.text

    def take(self, event: ServiceEvent) -> Grown | None:
        """What an event means for the text; None: nothing yet. Raises Refusal where the request has failed."""
        if isinstance(event, Failed):
            raise Refusal(503, event.text)
        if isinstance(event, Paused | Resumed):
            return Grown(self, comment=f"{type(event).__name__.lower()}: {event.text}")
        if isinstance(event, Tokens):
            stop = self._text.feed(event.ids)
            if stop is not None and self.ticket is not None:
                self.ticket.stop(stop.length, stop.reason)
            return self._grown() if len(self.text) > self._written else None
        self._text.finish()
        self.reason, self.record = event.reason, event.record
        if self.reason not in FINISH_REASONS:
            raise Refusal(503, f"the request was ended: {self.reason}", code=self.reason)
        return self._grown(ended=True)

    def _grown(self, *, ended: bool = False) -> Grown:
        grown = self.text[self._written :]
        self._written += len(grown)
        return Grown(self, grown, ended=ended)


class Answers:
    """Submits what a request asks for each of its prompts and choices. A context manager: whatever of it has not ended
    when it is left is cancelled, in the queue or in the pipe. Raises Refusal."""

    def __init__(
        self,
        service: Service,
        tokenizer: Tokenizer,
        asked: TextRequest,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        max_tokens: int,
        ends: Sequence[int],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[AnswerChoice, ServiceEvent]] = asyncio.Queue()
        self.choices: list[AnswerChoice] = []
        self.seed = seed
        try:
            for prompt in prompts:
                for number in range(asked.n):
                    text = TextStream(tokenizer, asked.stops, prompt=prompt, ends=ends)
                    choice = AnswerChoice(len(self.choices), prompt, asked.sampling(seed + number), text)
                    self.choices.append(choice)
                    self._submit(service, asked, choice, max_tokens, ends)
        except BaseException:
            self.close()
            raise

    def _submit(
        self, service: Service, asked: TextRequest, choice: AnswerChoice, max_tokens: int, ends: Sequence[int]
    ) -> None:
        def hand_over(event: ServiceEvent) -> None:
            with suppress(RuntimeError):  # The loop has closed: nobody waits.
                self._loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

        try:
            choice.ticket = service.submit(
                choice.prompt, max_tokens=max_tokens, sampling=choice.sampling, stop_ids=ends,
                strategy=asked.pipeinfer.strategy, options=asked.pipeinfer.options,
                deadline_s=asked.pipeinfer.deadline_s, on_event=hand_over,
            )  # fmt: skip
        except ServiceEnded as problem:
            raise Refusal(503, str(problem)) from None
        except (ValueError, LaunchError) as problem:
            raise Refusal(400, str(problem)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not ended."""
        for choice in self.choices:
            if choice.ticket is not None and not choice.reason:
                choice.ticket.cancel("cancelled")

    async def taken(self) -> None:
        """Wait until all have a place, in the pipe or in the queue. Where one has none, Refusal is raised and the
        others are cancelled."""
        try:
            await self._places()
        except BaseException:
            self.close()
            raise

    async def _places(self) -> None:
        tickets = [choice.ticket for choice in self.choices if choice.ticket is not None]
        try:
            await asyncio.gather(*[asyncio.wrap_future(ticket.taken) for ticket in tickets])
        except QueueFull as problem:
            raise Refusal(429, str(problem), code="queue_full", headers={"retry-after": "1"}) from None
        except ServiceEnded as problem:
            raise Refusal(503, str(problem)) from None

    async def grow(self) -> AsyncIterator[Grown]:
        """Everything that happens until all choices have ended. Raises Refusal."""
        left = len(self.choices)
        while left:
            try:
                async with asyncio.timeout(QUIET_S):
                    choice, event = await self._events.get()
            except TimeoutError:
                yield Grown(comment="waiting")
                continue
            grown = choice.take(event)
            if grown is not None:
                left -= grown.ended
                yield grown

    async def whole(self) -> None:
        """Wait until all have ended. Raises Refusal."""
        async for _ in self.grow():
            pass
