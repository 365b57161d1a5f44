"""A language model for tests that notices every mistake in a KV cache.

Each layer's output for a row is a hash of exactly the values that the row can see in that layer's cells, in order of
position. One cell too many, too few, too old or in the wrong sequence, on any stage, and the text takes another turn.
"""

from collections.abc import Iterable, Sequence

from pipeinfer.core.messages import TO_THE_END, KvOp, KvSeqCp

Values = tuple[int, ...]
CellWords = tuple[int, int, Values, int]
"""Run, position, tags and row of a cell."""


class Cell:
    """One KV cell, filled by row `row` of run `run`: free as soon as `tags` is empty."""

    __slots__ = ("position", "row", "run", "tags", "value", "words")

    def __init__(self, run: int, position: int, tags: Iterable[int], value: int, row: int = 0) -> None:
        self.row = row
        self.run = run
        self.position = position
        self.tags = frozenset(tags)
        self.value = value
        self.words: CellWords | None = None

    def described(self) -> CellWords:
        """Made once for the tags that it has."""
        self.words = (self.run, self.position, tuple(sorted(self.tags)), self.row)
        return self.words


class ToyCells:
    """The cells of one stage, with llama.cpp's semantics."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.cells: dict[Cell, None] = {}
        """In the order in which they were filled."""
        self._of: dict[int, list[Cell]] = {}
        """Those with a tag."""

    def copy(self) -> "ToyCells":
        """The same, for whoever changes them."""
        copied = ToyCells(self.capacity)
        for cell in self.cells:
            copied._fill(Cell(cell.run, cell.position, cell.tags, cell.value, cell.row))
        return copied

    def apply(self, ops: Sequence[KvOp]) -> None:
        for op in ops:
            if isinstance(op, KvSeqCp):
                there, too = self._of.setdefault(op.dst, []), frozenset((op.dst,))
                for cell in self._tagged(op.src, op.start, op.stop):
                    if op.dst not in cell.tags:
                        cell.tags, cell.words = cell.tags | too, None
                        there.append(cell)
            else:
                for cell in (gone := self._tagged(op.sequence, op.start, op.stop)):
                    cell.tags, cell.words = cell.tags - {op.sequence}, None
                    if not cell.tags:
                        del self.cells[cell]
                if gone:
                    self._of[op.sequence] = [cell for cell in self._of[op.sequence] if op.sequence in cell.tags]

    def _tagged(self, sequence: int, start: int, stop: int) -> list[Cell]:
        return [
            cell for cell in self._of.get(sequence, ())
            if start <= cell.position and (stop == TO_THE_END or cell.position < stop)
        ]  # fmt: skip

    def _fill(self, cell: Cell) -> None:
        self.cells[cell] = None
        for tag in cell.tags:
            self._of.setdefault(tag, []).append(cell)

    def store(
        self,
        run: int,
        values: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[Sequence[int]],
        names: Sequence[int] = (),
    ) -> list[Values | None]:
        """Store a row of `run` per value. Gives what each row sees at positions 0 to its own, None where gaps are.
        `names`: which rows of the run these are, where it is not all of them."""
        assert len(self.cells) + len(values) <= self.capacity, "more rows than free cells"
        seen: list[Values | None] = []
        for row, (value, position, tags) in enumerate(zip(values, positions, sequences, strict=True)):
            self._fill(Cell(run, position, tags, value, names[row] if names else row))
            seen.append(self._visible(tags[0], position))
        return seen

    def _visible(self, sequence: int, position: int) -> Values | None:
        cells = self._tagged(sequence, 0, position + 1)
        values = {cell.position: cell.value for cell in cells}
        assert len(values) == len(cells), f"sequence {sequence} holds a position twice"
        return tuple([values[at] for at in range(position + 1)]) if len(values) == position + 1 else None

    def held(self) -> list[CellWords]:
        """Every cell in use."""
        return sorted([cell.words or cell.described() for cell in self.cells])

    def lengths(self) -> dict[int, int]:
        """How many cells have each tag."""
        return {tag: len(cells) for tag, cells in self._of.items() if cells}

    def take_back(self, rows: int) -> None:
        """Forget the last `rows` rows: their computation was aborted."""
        for _ in range(rows):
            cell, _ = self.cells.popitem()
            for tag in cell.tags:
                self._of[tag].remove(cell)


class ToyLanguage:
    """The target, `layers` deep, and a draft whose best candidate is the target's token in `agreement` % of texts."""

    def __init__(self, salt: int, layers: int, vocabulary: int = 24, agreement: int = 60) -> None:
        self.salt = salt
        self.layers = layers
        self.vocabulary = vocabulary
        self.agreement = agreement
        self._levels: dict[Values, tuple[Values, ...]] = {(): ((),) * (layers + 1)}

    def layer(self, index: int, seen: Values) -> int:
        """What layer `index` makes of the values that a row sees."""
        return hash((self.salt, index, seen))

    def token(self, output: int) -> int:
        """The target's choice, from the last layer's output."""
        return output % self.vocabulary

    def next(self, text: Values) -> int:
        """The target's token after `text`, without any cache."""
        return self.token(self._known(text)[-1][-1])

    def _known(self, text: Values) -> tuple[Values, ...]:
        levels = self._levels.get(text)
        if levels is None:
            before = self._known(text[:-1])
            rows = [(*before[0], text[-1])]
            for index in range(self.layers):
                rows.append((*before[index + 1], self.layer(index, rows[index])))
            levels = self._levels[text] = tuple(rows)
        return levels

    def candidates(self, text: Values, count: int) -> tuple[tuple[int, float], ...]:
        """The draft's best tokens after `text`, with confidences that fall from rank to rank."""
        right = self.next(text)
        chance = hash((self.salt, -2, text))
        rank = 0 if chance % 100 < self.agreement else 1 + chance // 100 % 9
        others = [(right + 1 + (chance // 7 + step) % (self.vocabulary - 1)) % self.vocabulary for step in range(8)]
        others.insert(rank, right)
        best = (chance // 1000 % 90 + 10) / 100
        return tuple([(token, best * 0.7**k) for k, token in enumerate(others[: min(count, 8)])])

    def plain(self, prompt: Values, max_tokens: int, stop_ids: Values, limit: int) -> tuple[list[int], str]:
        """The loop that every strategy must agree with: one token after another, and why it ended."""
        text = prompt
        while True:
            token = self.next(text)
            text = (*text, token)
            generated = list(text[len(prompt) :])
            if token in stop_ids:
                return generated, "eos"
            if len(generated) >= max_tokens:
                return generated, "length"
            if len(text) >= limit:
                return generated, "context"
