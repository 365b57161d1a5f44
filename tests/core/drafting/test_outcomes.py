"""`outcomes` as a trace: the branch first, then what may follow it, proposed when the text gets there."""

from typing import Any

from pipeinfer.core.drafter import Drafter
from pipeinfer.core.drafting.outcomes import Outcomes
from pipeinfer.core.effects import ComputeDraft, Drafted, Forward
from pipeinfer.core.messages import DraftFrom, DraftSettings, Proposal

FAR = 100


class Model:
    """A drafter whose model says, after token t: t + 1, then t + 20, t + 40, ..."""

    def __init__(self, sequences: int = 32, cells: int = 256, **options: Any) -> None:
        self.drafter = Drafter(cells, sequences, 1000, lambda _: Outcomes(**options))
        self.forwards: list[list[int]] = []
        self.proposed: list[list[int]] = []

    def tell(self, event: Any) -> ComputeDraft | None:
        """Gives the forward that it begins."""
        effects = self.drafter.handle(0.0, event)
        self.drafter.validate()
        self.proposed += [[node.token for node in effect.message.nodes] for effect in effects
                          if isinstance(effect, Forward) and isinstance(effect.message, Proposal)
                          and effect.message.nodes]  # fmt: skip
        return next((effect for effect in effects if isinstance(effect, ComputeDraft)), None)

    def order(self, number: int, *tokens: int, until: int = FAR) -> None:
        """Draft on, until there is nothing more to compute."""
        work = self.tell(DraftFrom(number, tokens, until, DraftSettings(micro_batch=1) if number == 1 else None))
        while work is not None:
            self.forwards.append(list(work.tokens))
            rows = work.tokens[len(work.tokens) - work.outputs :]
            candidates = [tuple([(token + (20 * k or 1), 0.5**k) for k in range(work.count)]) for token in rows]
            work = self.tell(Drafted(tuple(candidates)))


def prepared() -> Model:
    """The branch 101, 102 after 100, with what follows 120 and 140 or 121 and 141 or 103 and 122."""
    model = Model(alternatives=2, length=2, rounds=True)
    model.order(1, 100)
    return model


def test_the_branch_comes_first_and_then_every_way_in_which_it_may_end() -> None:
    model = prepared()
    assert model.forwards == [
        [100], [101],
        [102, 120, 140, 121, 141],
        [121, 141, 122, 142, 103, 122],
        [122, 142, 123, 143, 104, 123],
        [105, 124],
    ]  # fmt: skip
    assert model.proposed == [[101], [102]]


def test_what_was_prepared_is_proposed_at_once() -> None:
    model = prepared()
    model.forwards.clear()
    model.order(2, 101, 141)
    assert model.proposed[2:] == [[142, 143]]
    assert model.forwards[0] != [141], "nothing had to be read first"


def test_what_was_not_foreseen_is_read_and_drafted_from() -> None:
    model = prepared()
    model.forwards.clear()
    model.order(2, 101, 99)
    assert model.forwards[0] == [101, 99][1:]
    assert model.proposed[2:] == [[100], [101]]


def test_an_accepted_branch_goes_on_with_its_best_outcome() -> None:
    model = prepared()
    model.order(2, 101, 102, 103)
    assert model.proposed[2:] == [[104, 105]]


def test_it_leaves_sequences_and_cells_to_others() -> None:
    few = Model(sequences=6, alternatives=2, length=2, rounds=True)
    few.order(1, 100)
    assert few.forwards == [[100], [101], [102]], "no sequence for an outcome, but the branch goes on"
    small = Model(cells=5, alternatives=2, length=2, rounds=True)
    small.order(1, 100)
    assert small.proposed == [[101], [102]]


def test_sequences_are_given_back() -> None:
    model = prepared()
    for number in range(2, 40):
        model.order(number, 100 + number % 7)
    model.tell(DraftFrom(40, (), -1))
    assert model.drafter.ledger.used == 0
