"""The authors' programs and ours in one table, all by the same clock."""

import numpy as np

from pipeinfer.reproduce.analysis import REFERENCE, Analysis, Best, paired_ratio
from pipeinfer.reproduce.report import Table
from pipeinfer.results import metrics
from pipeinfer.results.trial import Trial

HEAD = ["program", "strategy", "tokens/s", "of its iterative", "of its speculative", "of ours", "mean gap",
        "first token", "whole run", "tokens/s by its own clock", "text", "trials"]  # fmt: skip

NOTES = (
    "All but the last but two columns are from one monotonic wall clock. Ours is read at the head when it commits a "
    "token; theirs is read outside, when text comes out of the program. Tokens/s and gaps are from the first token to "
    "the last; the first token counts from when reading the prompt begins. The whole run of theirs has loading and "
    "leaving in it; ours stays loaded. Their own clocks are thread CPU time, process CPU time over all threads, and "
    "the inverse of a mean in whole milliseconds: no two of them compare, with each other or with a wall clock. Texts "
    "are compared with our iterative text; theirs come from a llama.cpp of 2023, so that a near tie may fall otherwise."
)


def head_to_head(analysis: Analysis) -> Table:
    """A row per contender: ours, then theirs."""
    rows = [_row(analysis, best) for place in analysis.places for best in analysis.at(place).values()]
    rows.sort(key=lambda row: row[0] != "ours")
    return Table(HEAD, rows, range(2, 10), f"{analysis.recipe.title} ({analysis.recipe.fidelity})")


def _row(analysis: Analysis, best: Best) -> list[str]:
    contenders, there = analysis.recipe.strategies, analysis.at(best.place)
    own = contenders[best.strategy]
    strategy = own.of or best.strategy
    # Ours have the names of the strategies; theirs say by `of` which one they are.
    same_side = {
        contenders[name].of or name: other
        for name, other in there.items()
        if bool(contenders[name].program) == bool(own.program)
    }
    return [
        own.program or "ours",
        f"{strategy} {analysis.chosen(best)}".strip(),
        f"{best.speed:.2f}",
        _ratio(best, same_side.get(REFERENCE)),
        _ratio(best, same_side.get("speculative")),
        _ratio(best, there.get(strategy)) if own.program else "-",
        _seconds(best.median(lambda trial: metrics.itl_s(trial)["mean"])),
        _seconds(best.median(_first_token)),
        _seconds(best.median(lambda trial: trial.config.get("whole_s"))),
        _own_clock(best),
        _agreement(best, there.get(REFERENCE)),
        str(len(best.trials)),
    ]


def _own_clock(best: Best) -> str:
    """The median of what the program printed, as far as it printed a number."""
    printed = [trial.config.get("own_tokens_per_second") for trial in best.trials.values()]
    speeds = [float(speed) for speed in printed if speed]
    return f"{np.median(speeds):.1f}" if speeds else "-"


def _first_token(trial: Trial) -> float | None:
    """From when reading the prompt began, which not every program shows."""
    began = "loaded_s" not in trial.config or trial.config["loaded_s"] is not None
    return metrics.ttft_s(trial) if began else None


def _agreement(best: Best, reference: Best | None) -> str:
    """Whether a contender's texts are those of our iterative runs of the same prompts."""
    if reference is None:
        return "nothing to compare with"
    texts = {_prompt(draw): trial.config.get("text", "") for draw, trial in reference.trials.items()}
    differing: dict[str, str] = {}
    for draw, trial in best.trials.items():
        own, expected = trial.config.get("text", ""), texts.get(_prompt(draw), "")
        same = next((i for i, (a, b) in enumerate(zip(own, expected, strict=False)) if a != b), None)
        if same is not None:
            differing.setdefault(_prompt(draw), f"{_prompt(draw)} differs from character {same} of {len(expected)} on")
    return "; ".join(differing.values()) or "the same"


def _prompt(draw: str) -> str:
    return draw.partition(" #")[0]


def _ratio(best: Best, other: Best | None) -> str:
    value = None if other is None else paired_ratio(best, other)
    return "-" if value is None else f"{value:.2f}x"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
