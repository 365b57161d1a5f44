"""Record how a draft does on a target's own text: the traces that the simulator and the emulated backend play back."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeinfer.engine.backend import Backend, Batch, ModelStage, chain
from pipeinfer.engine.sampling import Floats, Sampling, candidates, sample
from pipeinfer.engine.vocabulary import SharedVocabulary
from pipeinfer.runtime.oracle import RANKS, Trace

ROWS = 32
"""Of a text that is known the draft reads so many tokens at a time."""


def load_whole(engine: Backend, model: str, cells: int, shared: int = 0, texts: int = 1) -> ModelStage:
    """All layers of a model in one stage, for so many `texts` at once of at most `cells` tokens each; of a draft's
    token ids those below `shared` alone (0: all)."""
    stage = engine.load(model, (0, engine.info(model).layers), cells=cells * texts, sequences=texts)
    return SharedVocabulary(stage, shared, gives_logits=True) if shared else stage


def record(
    target: ModelStage,
    draft: ModelStage,
    prompts: Iterable[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    *,
    limit: int,
    source: str,
    done: Callable[[], None] = lambda: None,
    at_once: int = 1,
) -> Trace:
    """The target generates `tokens` tokens after each prompt, of so many prompts `at_once`; the draft is asked for its
    candidates before each one.

    Both choose with the noise of the position, as in a generation. A text ends where it has `limit` tokens with its
    prompt, the most that both models hold. `done` is called after each prompt. Raises ValueError when a prompt leaves
    no room.
    """
    prompts = list(prompts)
    if (longest := max(map(len, prompts), default=0)) >= limit:
        raise ValueError(f"a prompt has {longest} tokens, and the models hold {limit} with the text that follows")
    ranks: list[int] = []
    confidences: list[list[float]] = []
    lengths: list[int] = []
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        for prompt, text in zip(some, _texts(target, some, tokens, sampling, limit), strict=True):
            for token, found in zip(text, _guesses(draft, prompt, text, sampling), strict=True):
                order = [candidate for candidate, _ in found]
                ranks.append(order.index(token) if token in order else -1)
                row = [round(confidence, 4) for _, confidence in found]
                confidences.append(row + [0.0] * (RANKS - len(row)))  # what the draft's filters leave out
            lengths.append(len(text))
            done()
    return Trace(ranks, confidences, source=source, lengths=lengths)


def _texts(
    target: ModelStage, prompts: Sequence[Sequence[int]], tokens: int, sampling: Sampling, limit: int
) -> list[list[int]]:
    """What the target writes after each prompt: of each text the next token, and then of each the one after it."""
    target.clear()
    texts: list[list[int]] = []
    for number, prompt in enumerate(prompts):
        (row,) = _logits(target, Batch(prompt, range(len(prompt)), [(number,)] * len(prompt), 1))
        texts.append([sample(row, len(prompt), sampling)])
    while going := [n for n, text in enumerate(texts) if len(text) < min(tokens, limit - len(prompts[n]))]:
        at = [len(prompts[n]) + len(texts[n]) - 1 for n in going]
        rows = _logits(target, Batch([texts[n][-1] for n in going], at, [(n,) for n in going], len(going)))
        for n, position, row in zip(going, at, rows, strict=True):
            texts[n].append(sample(row, position + 1, sampling))
    return texts


def _guesses(
    draft: ModelStage, prompt: Sequence[int], text: Sequence[int], sampling: Sampling
) -> Iterator[list[tuple[int, float]]]:
    """The draft's candidates for each token of the text, which it reads."""
    draft.clear()
    position = len(prompt)
    read = _logits(draft, chain(prompt, 0, 1))
    while True:
        for row in read:
            yield candidates(row, position, sampling, RANKS)
            position += 1
        start = position - 1 - len(prompt)
        unread = text[start : min(start + ROWS, len(text) - 1)]
        if not unread:
            return
        read = _logits(draft, chain(unread, position - 1, len(unread)))


def _logits(model: ModelStage, batch: Batch) -> Floats:
    logits = model.forward(batch, None, lambda: False)
    assert logits is not None
    return logits
