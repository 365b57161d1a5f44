"""What the routes do."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeinfer.serve.answers import Answers
from pipeinfer.serve.event_stream import END, EventStream, comment, data
from pipeinfer.serve.guard import MOST_BODY, too_large
from pipeinfer.serve.page import page_response
from pipeinfer.serve.pipe_events import Listener, PipeEvents
from pipeinfer.serve.prometheus import CONTENT_TYPE, exposition
from pipeinfer.serve.prompts import Prompts, ServedModel
from pipeinfer.serve.refusal import Refusal
from pipeinfer.serve.request_schema import ChatRequest, CompletionRequest, Kind, TextRequest, read
from pipeinfer.serve.responses import Responses
from pipeinfer.serve.service import Service

BODY_S = 30.0
"""Seconds in which a request's body has to come."""

COMPLETION_TOKENS, CHAT_TOKENS = 16, 512
"""Most tokens of an answer where the request does not say."""

LOOK_S = 0.05
"""How often what happened in the pipe is sent on."""

SNAPSHOT_S = 0.5

GONE = 499
"""The status that nobody reads: the client has gone."""


class Handlers:
    """Answers for one service and its model. `closing` is set when the server is about to end."""

    def __init__(self, service: Service, model: ServedModel, pipe: PipeEvents) -> None:
        self.closing = asyncio.Event()
        self._service = service
        self.model = model
        self._pipe = pipe
        self._prompts = Prompts(model)
        self._started = int(time.time())

    # Texts

    async def completions(self, request: Request) -> Response:
        asked = await self._read(request, CompletionRequest)
        prompts = await self._prompts.of_completion(asked)
        return await self._answer(request, asked, prompts, asked.max_tokens or COMPLETION_TOKENS, chat=False)

    async def chat(self, request: Request) -> Response:
        asked = await self._read(request, ChatRequest)
        prompts = await self._prompts.of_chat(asked)
        wanted = asked.max_completion_tokens or asked.max_tokens
        most = wanted or min(CHAT_TOKENS, self._prompts.room(prompts))
        return await self._answer(request, asked, prompts, most, chat=True)

    async def _read(self, request: Request, kind: type[Kind]) -> Kind:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise Refusal(415, f"expected Content-Type: application/json, came {media or 'none'}")
        asked = read(await read_body(request), kind)
        if asked.model not in (None, self.model.name):
            raise Refusal(404, f"no model {asked.model!r}: this server has {self.model.name!r}", param="model",
                          code="model_not_found")  # fmt: skip
        return asked

    async def _answer(
        self, request: Request, asked: TextRequest, prompts: Sequence[Sequence[int]], most: int, *, chat: bool
    ) -> Response:
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        ends = () if asked.ignore_eos else self.model.ends
        answers = Answers(self._service, self.model.tokenizer, asked, prompts, seed=seed, max_tokens=most, ends=ends)
        await answers.taken()
        responses = Responses(answers, model=self.model.name, chat=chat, token_ids=asked.pipeinfer.token_ids)
        if asked.stream:
            return EventStream(chunks(answers, responses, asked), answers.close)
        with answers:
            if not await unless_gone(request, answers):
                return Response(status_code=GONE)
            return json_response(responses.whole())

    # About the server

    async def models(self, request: Request) -> Response:
        """The one model, with what a client may want to know of it."""
        entry = {"id": self.model.name, "object": "model", "created": self._started, "owned_by": "pipeinfer",
                 "max_model_len": self.model.limit, "chat": self.model.template is not None,
                 "stages": self._service.snapshot().stages}  # fmt: skip
        return json_response({"object": "list", "data": [entry]})

    async def health(self, request: Request) -> Response:
        """Whether requests are taken. Raises Refusal."""
        now = self._service.snapshot()
        if now.state != "serving":
            raise Refusal(503, now.state)
        return json_response({"status": "ok", "lacks": now.lacks} if now.lacks else {"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(exposition(self._service.snapshot(), self.model.name), media_type=CONTENT_TYPE)

    async def page(self, request: Request) -> Response:
        return page_response()

    async def pipe(self, request: Request) -> Response:
        """The pipe in motion: what happened, in batches, and now and then how things stand."""
        if self._pipe.full:
            raise Refusal(429, "enough others look at the pipe already", headers={"retry-after": "10"})
        listening = self._pipe.listen()
        return EventStream(self._happenings(listening.__enter__()), lambda: listening.__exit__(None, None, None))

    async def _happenings(self, listener: Listener) -> AsyncIterator[bytes]:
        told = 0.0
        while not self.closing.is_set():
            now = time.monotonic()
            happened = listener.take()
            if now - told >= SNAPSHOT_S:
                told = now
                happened.append({"snapshot": self._service.snapshot()})
            if happened:
                yield data(happened)
            await asyncio.sleep(LOOK_S)


def json_response(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def read_body(request: Request) -> bytes:
    """The body, if it comes in time and is not too large. Raises Refusal."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for some in request.stream():
                body += some
                if len(body) > MOST_BODY:
                    raise too_large()
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_S:.0f} s", headers={"connection": "close"}) from None
    return bytes(body)


async def unless_gone(request: Request, answers: Answers) -> bool:
    """Wait for all texts; False where the client goes away before. Raises Refusal."""
    texts = asyncio.create_task(answers.whole())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({texts, gone}, return_when=asyncio.FIRST_COMPLETED)
        if texts.done():
            texts.result()
        return texts.done()
    finally:
        texts.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def chunks(answers: Answers, responses: Responses, asked: TextRequest) -> AsyncIterator[bytes]:
    """A stream's events: text as it grows, a last chunk with the metrics, [DONE]. What goes wrong is an event too."""
    options = asked.stream_options
    running = len(answers.choices)
    fresh = set(range(running))
    try:
        async for grown in answers.grow():
            if grown.comment or grown.choice is None:
                yield comment(grown.comment)
                continue
            index = grown.choice.index
            chunk = responses.chunk(grown.choice, grown.text, first=index in fresh)
            fresh.discard(index)
            running -= grown.ended
            if options.continuous_usage_stats:
                chunk["usage"] = responses.usage()
            if not running and not options.include_usage:
                chunk["metrics"] = responses.metrics()
            yield data(chunk)
        if options.include_usage:
            yield data({**responses.usage_chunk(), "metrics": responses.metrics()})
    except Refusal as refusal:
        yield data(refusal.body)
    yield END
