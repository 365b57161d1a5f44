"""What the head asks of ranks that have no model yet, in terms of a plan and its models."""


import msgspec

from pipeinfer.cluster.models import Models
from pipeinfer.cluster.placement import LayerRange
from pipeinfer.engine.sampling import Sampling
from pipeinfer.runtime.control import Inspect, Load


def inspections(models: Models, count: int, head_address: str, *, limited: bool) -> dict[int, Inspect]:
    """What the head asks `count` ranks first, of which those behind the target's draft. `limited`: over links that are
    shaped as planned, to measure them."""
    plan = models.plan
    limits = (plan.latency_s, plan.bandwidth_bps) if limited else ()
    options = msgspec.json.encode(plan.backend_options)
    return {rank: Inspect(rank, plan.backend, options, head_address, *limits) for rank in range(count)}


def target_load(models: Models, cells: int, sampling: Sampling) -> Load:
    """All of the target but which layers."""
    plan = models.plan
    options = msgspec.json.encode(plan.backend_options)
    return Load(plan.backend, options, plan.target, (0, 0), cells, models.target.hidden_size, models.target.vocabulary,
                False, sampling, 0, plan.cpu_share, plan.exact)  # fmt: skip


def draft_load(models: Models, cells: int, sampling: Sampling, layers: LayerRange) -> Load:
    """Layers [i, j) of the draft; after the last, with choosing the best candidate."""
    plan, draft = models.plan, models.draft
    assert draft is not None
    assert plan.draft is not None
    options = msgspec.json.encode(plan.backend_options)
    return Load(plan.backend, options, plan.draft, layers, cells, draft.hidden_size,
                draft.vocabulary, layers[1] == draft.layers, sampling, 1, plan.cpu_share)  # fmt: skip
