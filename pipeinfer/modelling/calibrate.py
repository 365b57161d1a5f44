"""Measures a cluster with a pair of models, and writes down what the simulator, the emulated backend and the `auto`
split need: a `Profile`."""

import platform
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pipeinfer import __version__
from pipeinfer.cluster.contact import Contact
from pipeinfer.cluster.garbage_collection import uncollected
from pipeinfer.cluster.inspection import draft_load, inspections, target_load
from pipeinfer.cluster.models import Models
from pipeinfer.engine.backend import ModelInfo
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError, RankLost
from pipeinfer.modelling.head_time import head_event_s
from pipeinfer.modelling.profile import Curve, DraftShare, LinkProfile, ModelProfile, Profile, RankProfile
from pipeinfer.modelling.rank_survey import Grid, LayerTimes, Seconds, Survey, part_of, parts_of
from pipeinfer.runtime.transports import HEAD

ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
CONTEXTS = (32, 128, 512)
PART_S = 0.6
"""How long each part of a model is timed on a rank, at least three rounds over all rows and contexts."""

CONTENTION_S = 0.25

DRAFT_BURST = 4
"""A draft on one rank is timed computing so many tokens one after another, as it does. Of several ranks each waits for
the others after every token."""


def calibrate(
    models: Models,
    sampling: Sampling,
    say: Callable[[str], None],
    part_s: float | None = None,
    *,
    contexts: Sequence[int] = (),
    alike: bool = False,
) -> Profile:
    """Measure the ranks of these models' plan; the last one drafts, or the last ones, where it splits the draft.
    `say` is told what is being measured, which takes `part_s` seconds per part of a model, after `contexts` of so many
    tokens (PART_S and CONTEXTS unless given). `alike`: one rank of each host is measured for all of them.

    Raises LaunchError, BadModel, BadSplit, UnknownPlugin, TransportError or RankLost.
    """
    plan = models.plan
    if models.draft is None or plan.draft is None:
        raise LaunchError("a profile is of a pair: give a draft model")
    with Contact(plan.transport, models.count, plan.workers, plan.key, models.loads) as contact, uncollected():
        survey = Survey(contact, say)
        try:
            say("the ranks")
            survey.inspect(inspections(models, models.count, contact.transport.address, limited=True))
            seconds = PART_S if part_s is None else part_s
            return _Calibration(models, survey, sampling, seconds, contexts or CONTEXTS, alike=alike).profile()
        except RankLost as lost:
            if contact.never_came(lost):
                raise LaunchError(str(lost)) from lost
            raise


class _Calibration:
    """All measurements of one profile."""

    def __init__(
        self, models: Models, survey: Survey, sampling: Sampling, part_s: float, contexts: Sequence[int], *, alike: bool
    ) -> None:
        assert models.draft is not None
        self._models = models
        self._survey = survey
        self._sampling = sampling
        longest = min(models.target.context, models.draft.context, models.cells)
        if longest < 2 * ROWS[-1]:
            raise LaunchError(f"the models have a context of {longest}: expected at least {2 * ROWS[-1]} to measure in")
        self._grid = Grid(ROWS, tuple(sorted({min(context, longest) for context in contexts})), part_s)
        self._alike = alike

    def profile(self) -> Profile:
        models, survey, ranks = self._models, self._survey, sorted(self._survey.ranks)
        plan, target, draft = models.plan, models.target, models.draft
        assert draft is not None
        assert plan.draft is not None
        cells = self._grid.contexts[-1]
        load = target_load(models, cells, self._sampling)
        timed = self._timed(ranks)
        times = survey.layers(sorted(set(timed.values())), load, target, self._grid)
        drafting = tuple([self._draft_share(rank, cells) for rank in ranks[models.drafter :]])
        crowd = max(survey.by_host(ranks).values(), key=len)
        some = part_of(load, parts_of(target.layers, target.layer_bytes)[0], target.layers)
        return Profile(
            name=f"{plan.target} + {plan.draft} on {len(ranks)} ranks",
            backend=plan.backend,
            target=_model(plan.target, target),
            draft_model=_model(plan.draft, draft),
            ranks=tuple([self._rank(timed[rank], times[timed[rank]]) for rank in ranks]),
            draft=drafting[0].forward if len(drafting) == 1 else drafting,
            links=tuple(self._links(len(ranks))),
            contention=survey.contention(crowd, some, self._grid.contexts[0], CONTENTION_S),
            message_s=survey.handling_s(ranks[0]),
            head_s=head_event_s(),
            environment=self._environment(),
        )

    def _timed(self, ranks: Sequence[int]) -> dict[int, int]:
        """Rank to the rank that is timed for it."""
        if not self._alike:
            return {rank: rank for rank in ranks}
        return {rank: here[0] for here in self._survey.by_host(ranks).values() for rank in here}

    def _draft_share(self, rank: int, cells: int) -> DraftShare:
        models, survey = self._models, self._survey
        layers = models.draft_split[rank - models.drafter]
        survey.say(f"the draft on rank {rank}")
        grid = self._grid._replace(burst=DRAFT_BURST if len(models.draft_split) == 1 else 1)
        times = survey.parts([rank], draft_load(models, cells, self._sampling, layers), grid)
        return DraftShare(layers, self._curve(times[rank]))

    def _links(self, count: int) -> list[LinkProfile]:
        """Every one that some strategy uses: along the ranks, from the head to each, to the head from the ends of the
        target and from the rank that drafts, and back to that one from the draft's last."""
        drafter = self._models.drafter
        pairs = [(HEAD, rank) for rank in range(count)]
        pairs += [(rank, rank + 1) for rank in range(count - 1)]
        pairs += [(rank, HEAD) for rank in sorted({drafter - 1, drafter, count - 1}) if rank >= 0]
        pairs += [(count - 1, drafter)] if count - 1 > drafter else []
        found = [self._survey.link(source, target) for source, target in pairs]
        return [LinkProfile(link.source, link.target, link.latency_s, link.bandwidth_bps) for link in found]

    def _rank(self, rank: int, times: LayerTimes) -> RankProfile:
        inspected = self._survey.ranks[rank]
        sharing = len(self._survey.by_host(self._survey.ranks)[inspected.host]) if inspected.shared else 1
        curves = [self._curve(part) for part in times]
        return RankProfile(inspected.host, inspected.memory_bytes // sharing, *curves)

    def _curve(self, seconds: Seconds) -> Curve:
        return Curve(self._grid.rows, self._grid.contexts, tuple([tuple(line) for line in seconds.tolist()]))

    def _environment(self) -> dict[str, Any]:
        plan, ranks = self._models.plan, self._survey.ranks
        return {
            "pipeinfer": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "backend_options": plan.backend_options,
            "transport": "workers" if plan.workers else plan.transport,
            "cores": {ranks[rank].host: ranks[rank].cores for rank in sorted(ranks)},
            "sampling": msgspec.structs.asdict(self._sampling),
        }


def _model(name: str, info: ModelInfo) -> ModelProfile:
    return ModelProfile(name, info.layers, info.hidden_size, info.vocabulary, info.layer_bytes, info.head_bytes)
