"""The models of a plan: as their backends describe them, split into layers, and as set-up messages for the ranks."""

from collections.abc import Sequence

import msgspec

from pipeinfer.cluster.placement import BadSplit, LayerRange, even_split, parse_split
from pipeinfer.cluster.plan import AUTO, FITTING, Plan
from pipeinfer.cluster.ranks import Loads
from pipeinfer.engine.backend import BadModel, ModelInfo
from pipeinfer.engine.fingerprint import fingerprints
from pipeinfer.engine.vocabulary import differences
from pipeinfer.plugins import open_backend
from pipeinfer.runtime.control import Setup
from pipeinfer.runtime.transports import HEAD

SPARE_CELLS = 256
"""KV cells beyond the longest text, for speculation, unless the plan says how many cells there are."""

SHORT_TEXT = 1024
"""Cells for texts of so many tokens are not worth saving; those of a context of 128k may be larger than the model."""

DRAFT_SEQUENCES = 64
"""Sequence ids of the draft rank: one per branch, and one for the text."""


class Models:
    """The plan's models as their backends describe them, and the layer ranges. Raises BadModel, BadSplit."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.backend = open_backend(plan.backend, plan.backend_options)
        self.target: ModelInfo = self.backend.info(plan.target)
        self.split = even_split(self.target.layers, plan.stages) if plan.layers in (None, AUTO, FITTING) else (
            parse_split(plan.layers, self.target.layers))  # fmt: skip
        """With `auto` and `fitting`: until the ranks are known."""
        self._different: list[str] = []
        self.draft = self._draft() if plan.draft else None
        self.draft_split = self._split_draft(self.draft) if self.draft else []
        longest = max(plan.longest, SHORT_TEXT) if plan.longest else self.target.context
        self.cells = plan.cells or min(longest, self.target.context) + SPARE_CELLS

    @property
    def notes(self) -> list[str]:
        """What a user should know of the models, a line each."""
        found = [f"{self.plan.target}: {note}" for note in self.target.notes]
        if self.draft is not None:
            found += [f"{self.plan.draft}: {note}" for note in self.draft.notes]
        if self._different:
            found.append(f"{self._different[0]}: the draft guesses worse where a text has one of"
                         f" {len(self._different)} such tokens")  # fmt: skip
        return list(dict.fromkeys(found))

    @property
    def loads(self) -> Loads:
        """What ranks have to load."""
        return Loads(self.plan.backend, (self.plan.target, *([self.plan.draft] if self.plan.draft else [])))

    @property
    def count(self) -> int:
        """How many ranks there are."""
        return len(self.split) + len(self.draft_split)

    @property
    def drafter(self) -> int:
        """The rank that drafts, where there is a draft: the first of its ranks."""
        return len(self.split)

    def _draft(self) -> ModelInfo:
        assert self.plan.draft is not None
        draft: ModelInfo = self.backend.info(self.plan.draft)
        if draft.vocabulary_digest != self.target.vocabulary_digest:
            self._different = self._compare(draft)
        return draft

    def _compare(self, draft: ModelInfo) -> list[str]:
        """Where added tokens differ, of which few texts have any. Raises BadModel where pieces of text do."""
        assert self.plan.draft is not None
        other = self.backend.tokenizer(self.plan.draft)
        pieces, added = differences(self.backend.tokenizer(self.plan.target).tokens(), other.tokens())
        if pieces:
            raise BadModel(
                f"{self.plan.draft} and {self.plan.target} have different vocabularies ({draft.vocabulary} and "
                f"{self.target.vocabulary} entries), in {len(pieces)} pieces of text: {pieces[0]}; the draft's token"
                " ids must mean what the target's mean"
            )
        return added

    @property
    def shared_vocabulary(self) -> int:
        """How many token ids both models have, where their numbers differ; else 0."""
        if self.draft is None or self.draft.vocabulary == self.target.vocabulary:
            return 0
        return min(self.draft.vocabulary, self.target.vocabulary)

    def _split_draft(self, draft: ModelInfo) -> list[LayerRange]:
        if self.plan.draft_layers is None:
            return [(0, draft.layers)]
        try:
            return parse_split(self.plan.draft_layers, draft.layers)
        except BadSplit as problem:
            raise BadSplit(f"draft: {problem}") from None

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Model to the digests of its files, where they are here too."""
        found = {self.plan.target: fingerprints(self.backend, self.plan.target)}
        if self.plan.draft is not None:
            found |= {self.plan.draft: fingerprints(self.backend, self.plan.draft)}
        return found

    def setups(self, addresses: Sequence[str], head_address: str) -> list[Setup]:
        """One Setup per rank: the target's stages in order, then the draft's."""
        plan, head = self.plan, (HEAD, head_address)
        first = Setup(
            rank=0, role="target", backend=plan.backend, options=msgspec.json.encode(plan.backend_options),
            model=plan.target, layers=self.split[0], stage=0, stages=1, sequences=plan.sequences,
            cells=self.cells, next_rank=HEAD, next_address=head_address, head_address=head_address,
            latency_s=plan.latency_s, bandwidth_bps=plan.bandwidth_bps, trace=plan.trace, cpu_share=plan.cpu_share,
            links=plan.links, exact=plan.exact, hidden_size=self.target.hidden_size,
        )  # fmt: skip
        setups = _chain(first, self.split, addresses, head)
        if plan.draft is not None:
            drafter = msgspec.structs.replace(
                first, rank=self.drafter, role="draft", model=plan.draft, sequences=DRAFT_SEQUENCES,
                vocabulary=self.shared_vocabulary, exact=False,
            )  # fmt: skip
            back = (self.drafter, addresses[self.drafter]) if len(self.draft_split) > 1 else head
            first_draft, *others = _chain(drafter, self.draft_split, addresses, back)
            behind = tuple(addresses[self.drafter + 1 : self.count])
            setups += [msgspec.structs.replace(first_draft, behind=behind), *others]
        return setups


def _chain(first: Setup, split: Sequence[LayerRange], addresses: Sequence[str], back: tuple[int, str]) -> list[Setup]:
    """A model's ranks from that of `first` on, each with the next to send to; the last sends to the rank `back`."""
    nexts = [(rank, addresses[rank]) for rank in range(first.rank + 1, first.rank + len(split))]
    return [
        msgspec.structs.replace(
            first, rank=first.rank + stage, layers=layers, stage=stage, stages=len(split), next_rank=rank,
            next_address=address,
        )
        for stage, (layers, (rank, address)) in enumerate(zip(split, [*nexts, back], strict=True))
    ]  # fmt: skip
