"""The texts of exact stages, each in an engine of its own: requests that take turns leave one another's alone."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from pipeinfer.core.messages import TO_THE_END, KvSeqRm
from pipeinfer.engine.backend import BadModel, ModelStage

MOST_TEXTS = 16
"""Engines have buffers beside their cells."""

Row: TypeAlias = int
"""The number of a row that was ever computed; none comes twice."""


class EngineText:
    """An engine and the rows that it holds, in the order of their positions."""

    def __init__(self, stage: ModelStage) -> None:
        self.stage = stage
        self.request: int | None = None
        """Whose text it is; None: of one that is over."""
        self.rows: list[Row] = []
        self.reached = 0
        """How long a text it has held: of so many cells it may have touched the memory."""

    def cut(self, rows: Sequence[Row]) -> int:
        """Keep what this text has in common with `rows`; gives how many that are."""
        common = in_common(self.rows, rows)
        if common < len(self.rows):
            self.stage.apply(KvSeqRm(0, common, TO_THE_END))
            del self.rows[common:]
        self.reached = max(self.reached, len(rows))
        return common


class EngineTexts:
    """Engines beside `stage`, one for each text, with `cells` cells in all; where there can be none beside it, `stage`
    is the engine of the only one. The least recently used text goes."""

    def __init__(self, stage: ModelStage, cells: int) -> None:
        self._stage = stage
        self._cells = cells
        self._most = MOST_TEXTS if hasattr(stage, "beside") else 1
        self._texts: list[EngineText] = []
        """The least recently used first."""

    def of(self, request: int, rows: Sequence[Row]) -> EngineText:
        """The engine with the text of `request`, which is to hold `rows`. Where it has none: the one that holds most of
        their beginning for nobody any more, or another one."""
        text = self._own(request) or self._left(rows)
        if text is not None:
            self._texts.remove(text)
        self._make_room(len(rows) if text is None else max(len(rows), text.reached))
        text = text or self._open()
        text.request = request
        self._texts.append(text)
        return text

    def leave(self, requests: Iterable[int]) -> None:
        """The texts of these requests are nobody's any more."""
        over = set(requests)
        for text in self._texts:
            if text.request in over:
                text.request = None

    def clear(self) -> None:
        """Hold nothing."""
        while self._texts:
            self._give_up()
        self._stage.clear()

    def _own(self, request: int) -> EngineText | None:
        return next((text for text in self._texts if text.request == request), None)

    def _left(self, rows: Sequence[Row]) -> EngineText | None:
        left = [text for text in self._texts if text.request is None and in_common(text.rows, rows)]
        return max(left, key=lambda text: in_common(text.rows, rows), default=None)

    def _make_room(self, cells: int) -> None:
        """For a text of so many cells beside the others."""
        while self._texts and sum(text.reached for text in self._texts) + cells > self._cells:
            self._give_up()

    def _open(self) -> EngineText:
        """One more engine; where there may be none, that of the text that was used longest ago."""
        if len(self._texts) == self._most > 1:
            self._give_up()
        if len(self._texts) < self._most > 1:
            try:
                return EngineText(self._stage.beside())  # type: ignore[attr-defined]
            except (BadModel, MemoryError):  # there is no room for more than there are
                self._most = max(1, len(self._texts))
        return self._texts.pop(0) if self._texts else EngineText(self._stage)

    def _give_up(self) -> None:
        """Let go of the text that was used longest ago."""
        text = self._texts.pop(0)
        if text.stage is self._stage:
            text.stage.clear()
        else:
            text.stage.close()


def in_common(one: Sequence[Row], other: Sequence[Row]) -> int:
    """How long the beginning is that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))
