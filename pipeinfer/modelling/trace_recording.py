"""Record how a draft does on a target's own text: the traces that the simulator and the emulated backend play back."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pipeinfer.core.ledger import CANONICAL
from pipeinfer.engine.backend import Backend, Batch, ModelStage
from pipeinfer.engine.sampling import Floats, Sampling, candidates, sample
from pipeinfer.engine.vocabulary import SharedVocabulary
from pipeinfer.runtime.oracle import RANKS, Trace


def load_whole(engine: Backend, model: str, cells: int, shared: int = 0) -> ModelStage:
    """All layers of a model in one stage, for one text of at most `cells` tokens; of a draft's token ids those below
    `shared` alone (0: all)."""
    stage = engine.load(model, (0, engine.info(model).layers), cells=cells, sequences=1)
    return SharedVocabulary(stage, shared, gives_logits=True) if shared else stage


class Reader:
    """A whole model that reads one text, token by token."""

    def __init__(self, model: ModelStage) -> None:
        self._model = model
        self._length = 0

    def restart(self) -> None:
        """Forget the text."""
        self._model.clear()
        self._length = 0

    def read(self, tokens: Sequence[int]) -> Floats:
        """The logits after `tokens`, float32 [vocabulary]."""
        positions = range(self._length, self._length + len(tokens))
        logits = self._model.forward(Batch(tokens, positions, [(CANONICAL,)] * len(tokens), 1), None, lambda: False)
        assert logits is not None
        self._length += len(tokens)
        row: Floats = np.array(logits[-1])
        return row


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
) -> Trace:
    """The target generates `tokens` tokens after each prompt; the draft is asked for its candidates before each one.

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
    readers = Reader(target), Reader(draft)
    for prompt in prompts:
        for reader in readers:
            reader.restart()
        unread: Sequence[int] = prompt
        length = min(tokens, limit - len(prompt))
        for position in range(len(prompt), len(prompt) + length):
            chosen, guessed = (reader.read(unread) for reader in readers)
            token = sample(chosen, position, sampling)
            found = candidates(guessed, position, sampling, RANKS)
            order = [candidate for candidate, _ in found]
            ranks.append(order.index(token) if token in order else -1)
            row = [round(confidence, 4) for _, confidence in found]
            confidences.append(row + [0.0] * (RANKS - len(row)))  # what the draft's filters leave out
            unread = [token]
        lengths.append(length)
        done()
    return Trace(ranks, confidences, source=source, lengths=lengths)
