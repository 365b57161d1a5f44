"""The room that requests share in the caches of one model, the target's or the draft's: sequence ids and cells, and the
texts that are kept for those that begin alike."""

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from pipeinfer.core.generation import Generation
from pipeinfer.core.ledger import Ledger
from pipeinfer.core.prefixes import Alike, HeldTexts
from pipeinfer.core.tree import Node


class Room:
    """So many cells and sequence ids. A kept text is given up, the least recently used first, where room is needed."""

    def __init__(self, cells: int, sequences: int, *, keeps_texts: bool) -> None:
        self.ledger = Ledger(cells, sequences)
        self.held = HeldTexts()
        self.free: deque[int] = deque(range(sequences))
        """Sequence ids that nobody has."""
        self.keeps_texts = keeps_texts
        self._alike = Alike()

    def validate(self, taken: Iterable[int]) -> None:
        """`taken`: the ids that requests and their runs have. Raises AssertionError or LedgerError."""
        self.ledger.validate()
        ids = sorted([*taken, *self.held.sequences, *self.free])
        assert ids == list(range(self.ledger.sequences)), "each sequence id is in one place"

    def make(self, sequences: int, cells: int, spared: int = -1) -> bool:
        """Whether so many of them are free, once texts that were kept are given up as far as needed; not `spared`."""
        while len(self.free) < sequences or self.ledger.free < cells:
            kept = [held for held in self.held.sequences if held != spared]
            if not kept or not self.might_have(cells):
                return False
            self.give_up(kept[0])
        return True

    def might_have(self, cells: int) -> bool:
        """Whether giving up every text that was kept may make room for so many; where texts share cells it may not."""
        return self.ledger.free + sum(map(self.ledger.length, self.held.sequences)) >= cells

    def give_up(self, sequence: int) -> None:
        """Keep this text no longer."""
        self.held.drop(sequence)
        self.give_back((sequence,))

    def give_back(self, sequences: Collection[int]) -> None:
        """These ids hold nothing any more."""
        self.ledger.release(*sequences)
        self.free.extend(sequences)

    def keep(self, sequence: int, text: Sequence[int]) -> None:
        """Hold of a sequence that is needed no more this text, with which it begins, if texts are kept."""
        if self.keeps_texts and text:
            self.ledger.cut(sequence, len(text))
            self.give_back(self.held.add(sequence, text))
        else:
            self.give_back((sequence,))

    def beginning(self, prompt: Sequence[int], live: Iterable[Generation]) -> tuple[int, int]:
        """The sequence that holds most of the beginning of a prompt, of a text that was kept or goes on, and how many
        tokens of it; of the last one the next has yet to be chosen. So of several requests with the same prompt the
        first computes it for all."""
        if not self.keeps_texts:
            return -1, 0
        source, shared = self.held.longest(prompt)
        for one in live:
            # What was sent of a text is on every stage by the time that whatever is sent now comes there.
            length = min(self._alike.length(one.number, one.text, prompt), one.tip.position)
            if length > shared and (length := min(length, self.ledger.length(one.sequence))) > shared:
                source, shared = one.sequence, length
        if source in self.held.sequences:
            self.held.use(source)
        return source, min(shared, len(prompt) - 1)

    # Rows

    def text_rows(self, sequence: int, nodes: Sequence[Node]) -> tuple[tuple[int, ...], ...]:
        """Cells for nodes that a text goes on with. Gives the sequence ids of each row."""
        for node in nodes:
            self.ledger.extend((sequence,), node.position)
        return ((sequence,),) * len(nodes)

    def branch_rows(
        self, generation: Generation, nodes: Sequence[Node]
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """Cells for nodes that may become text, parents first; the tip, if it is one of them, does. Each leaf takes a
        sequence id. Gives these ids, and those of each row: of the leaves that it leads to."""
        taken: tuple[int, ...] = ()
        tags: dict[Node, tuple[int, ...]] = dict.fromkeys(nodes, ())
        for node in reversed(nodes):
            own = tags[node]
            if not own:  # Whatever continues it comes after it, and so has been here: it is a leaf.
                own = tags[node] = (self.free.popleft(),)
                taken += own
            parent = node.parent
            if parent in tags:
                tags[parent] = own + tags[parent]
        tip, text, ledger = generation.tip, generation.sequence, self.ledger
        for node, sequences in tags.items():
            parent, position = node.parent, node.position
            if parent is not None and parent not in tags:
                source = text if parent.committed else parent.sequence
                for sequence in sequences:
                    ledger.fork(source, sequence, position)
                if node is tip:
                    sequences = tags[node] = (text, *sequences)
            ledger.extend(sequences, position)
            node.sequence = sequences[-1]
        return taken, tuple(tags.values())
