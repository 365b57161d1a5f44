"""Generating text from Python: a pipeline of ranks as a context manager."""

import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

import msgspec

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.settings import Settings, SettingsFields
from pipeinfer.core.effects import Stop
from pipeinfer.engine.sampling import Sampling
from pipeinfer.engine.text_stream import TextStream
from pipeinfer.plugins import open_strategy
from pipeinfer.results import metrics
from pipeinfer.results.trial import Trial

_log = logging.getLogger(__name__)


class GeneratedText(msgspec.Struct, frozen=True):
    """One generation. `text` is what follows the prompt; `trial` is the raw record that every figure derives from."""

    text: str
    prompt_ids: tuple[int, ...]
    trial: Trial

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What was generated, with the token that ended it, if any did."""
        return self.trial.token_ids

    @property
    def reason(self) -> str:
        """Why it ended: "length", "eos", "stop", "context", or "closed" where a reader of pieces had enough."""
        return self.trial.reason

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed, the prompt left out. None below two tokens."""
        return metrics.tokens_per_second(self.trial)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request to the first token."""
        return metrics.ttft_s(self.trial)

    @property
    def acceptance_rate(self) -> float | None:
        """Share of judged drafts that were right, 0 to 1. None where nothing was drafted."""
        return metrics.acceptance_rate(self.trial)

    @property
    def metrics(self) -> dict[str, Any]:
        """All of them, as `pipeinfer generate --json` prints them: seconds, bytes, tokens/s."""
        return metrics.summary(self.trial)


class Pipeline:
    """A target model on a pipeline of ranks, with a draft model on ranks of its own unless `draft` is None.

    Keyword arguments are those of `pipeinfer.cluster.settings.Settings`. Ranks run from `with` on, or `start()`, until
    it ends, or `close()`. One generation at a time; a call while pieces of another are being read waits for it.
    """

    def __init__(self, *, draft: str | None = "builtin:draft", **settings: Unpack[SettingsFields]) -> None:
        if settings.get("launcher") is not None:
            raise ValueError("launcher: start this program by mpirun instead; the pipeline finds that out by itself")
        self._drafts = draft is not None
        self._settings = Settings(**({"draft": draft} if draft is not None else {}), **settings)
        self._cluster: Cluster | None = None
        self._busy = threading.Lock()
        self._pieces: TextPieces | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Bring the ranks up; what is odd about the models is logged as warnings. Raises LaunchError, BadModel and the
        like, each in one line."""
        if self._cluster is None:
            self._cluster = Cluster(self._settings.plan(*self._settings.settle(), drafts=self._drafts))
            for note in self._cluster.models.notes:
                _log.warning(note)

    def close(self) -> None:
        """End the ranks, and the generation whose pieces are being read, if there is one."""
        if self._pieces is not None:
            self._pieces.close()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def generate(
        self, prompt: str, *, strategy: str | None = None, options: Mapping[str, Any] | None = None, tokens: int = 128,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, stop: Sequence[str] = (),
        raw: bool = False, ignore_eos: bool = False,
    ) -> GeneratedText:  # fmt: skip
        """Continue `prompt` by up to `tokens` tokens.

        `strategy` is "adaptive" unless given, or "iterative" without a draft; `options` are its own, like {"k": 6}.
        `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in. The same `seed` gives the same tokens
        whatever the strategy. The text ends before any of the strings `stop`. `raw` leaves the model's special tokens
        out of the prompt, and `ignore_eos` goes on after tokens that end a text. Raises ValueError, or RankLost.
        """
        pieces = self.stream(
            prompt, strategy=strategy, options=options, tokens=tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, seed=seed, stop=stop, raw=raw, ignore_eos=ignore_eos,
        )  # fmt: skip
        for _ in pieces:
            pass
        return pieces.result

    def stream(
        self, prompt: str, *, strategy: str | None = None, options: Mapping[str, Any] | None = None, tokens: int = 128,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, stop: Sequence[str] = (),
        raw: bool = False, ignore_eos: bool = False,
    ) -> "TextPieces":  # fmt: skip
        """The same, as pieces of text while tokens are committed."""
        if self._cluster is None:
            raise ValueError("the ranks are not running: use the pipeline in a `with` block, or call start()")
        if tokens < 1:
            raise ValueError(f"tokens = {tokens}: expected 1 or more")
        chosen = open_strategy(strategy or ("adaptive" if self._drafts else "iterative"), dict(options or {}))
        sampling = Sampling(temperature, top_k, top_p, seed)
        prompt_ids = self._cluster.tokenizer.encode(prompt, add_special=not raw)
        ends = () if ignore_eos else self._cluster.models.target.eos
        text = TextStream(self._cluster.tokenizer, stop, prompt=prompt_ids, ends=ends)
        arguments = {"max_tokens": tokens, "sampling": sampling, "stop_ids": ends}
        self._pieces = TextPieces(self._cluster, self._busy, text, prompt_ids, chosen, arguments)
        return self._pieces


class TextPieces(Iterator[str]):
    """The pieces of one generation, as they come; a piece may have several tokens, or part of one held back.

    Leaving off early ends the generation (`close`, which a `for` loop that breaks should be followed by, or a `with`
    block around it). `result` is there when the pieces have ended.
    """

    def __init__(
        self, cluster: Cluster, busy: threading.Lock, text: TextStream, prompt_ids: Sequence[int], strategy: Any,
        arguments: dict[str, Any],
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._busy = busy
        self._text = text
        self._prompt_ids = tuple(prompt_ids)
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._written = 0
        self._ended = False
        self._had_enough = threading.Event()
        self._result: GeneratedText | None = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._generate, args=(strategy, arguments), daemon=True)
        busy.acquire()
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> str:
        if not self._ended:
            piece = self._pieces.get()
            if piece is not None:
                return piece
            self._ended = True
            self._thread.join()
        if self._problem is not None:
            raise self._problem
        raise StopIteration

    def close(self) -> None:
        """Have no more of it: the generation ends after the tokens that are there."""
        self._had_enough.set()
        self._thread.join()

    @property
    def result(self) -> GeneratedText:
        """The whole generation. Waits for its end; raises what went wrong with it."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        assert self._result is not None
        return self._result

    def _generate(self, strategy: Any, arguments: dict[str, Any]) -> None:
        try:
            trial = self._cluster.generate(self._prompt_ids, strategy, on_tokens=self._on_tokens, **arguments)
            self._text.finish()
            self._put()
            self._result = GeneratedText(self._text.text, self._prompt_ids, trial)
        except BaseException as problem:  # raised where the pieces are read
            self._problem = problem
        finally:
            self._busy.release()
            self._pieces.put(None)

    def _on_tokens(self, tokens: tuple[int, ...]) -> Stop | None:
        stop = self._text.feed(tokens)
        self._put()
        if stop is None and self._had_enough.is_set():
            return Stop(len(self._text.tokens), "closed")
        return stop

    def _put(self) -> None:
        if grown := self._text.text[self._written :]:
            self._written += len(grown)
            self._pieces.put(grown)
