"""What the simulator predicts of generations that were really run."""

import msgspec

from pipeinfer.modelling.profile import Profile
from pipeinfer.modelling.profiled_cluster import simulate_one
from pipeinfer.modelling.simulate import Setting
from pipeinfer.results import metrics
from pipeinfer.runtime.oracle import Trace
from pipeinfer.study.points import LiveCell


class Predictor(msgspec.Struct, frozen=True):
    """What predictions are made from: a fitted profile, and the draft's trace per text (`text_of`) of those on which
    strategies are compared."""

    profile: Profile
    traces: dict[str, Trace]


def text_of(prompt: str, temperature: float) -> str:
    """A prompt and how it is continued, as a key."""
    return f"{prompt}, temperature {temperature:g}"


def predicted_tokens_per_s(predictor: Predictor, cell: LiveCell, prompt_tokens: int) -> float | None:
    """Simulated generation speed of a cell whose prompt has so many tokens; None where its text has no trace."""
    from pipeinfer.modelling.fit_trials import nodes

    live, trace = cell.live, predictor.traces.get(text_of(cell.prompt, cell.temperature))
    if trace is None:
        return None
    setting = Setting(
        cell.strategy, cell.options, nodes=nodes(cell.strategy, live.stages), tokens=cell.tokens, prompt=prompt_tokens,
        bandwidth_gbps=live.bandwidth_gbps, latency_us=live.latency_us or None,
    )  # fmt: skip
    return metrics.tokens_per_second(simulate_one(predictor.profile, setting, oracle=trace))
