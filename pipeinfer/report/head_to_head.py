"""The authors' programs and ours in one table, all by the same clock."""

import pandas as pd

from pipeinfer.report.experiment import Experiment, medians
from pipeinfer.report.page import Columns, Table, number, rounded, table_of
from pipeinfer.results.analysis import BASELINE, REFERENCE, SPEED, quotients


def _seconds(value: float) -> str:
    return number(1e3 * value, "{:.1f} ms") if value < 1 else number(value, "{:.2f} s")


COLUMNS: Columns = {
    "side": ("program", ""), "who": ("strategy", ""), "tokens_per_s": ("tokens/s", rounded),
    "processor_s_per_token": ("processor time per token", _seconds),
    "over_iterative": ("over its iterative", "{:.2f}x"), "over_speculative": ("over its speculative", "{:.2f}x"),
    "over_ours": ("over ours", "{:.2f}x"), "itl_mean_s": ("mean gap", _seconds), "ttft_s": ("first token", _seconds),
    "whole_s": ("whole run", _seconds), "own_clock_tokens_per_s": ("tokens/s by its own clock", rounded),
    "same": ("text", ""), "trials": ("trials", "{:d}"),
}  # fmt: skip

_CLOCK = (
    "Tokens/s, gaps, the first token and the whole run are from one monotonic wall clock. Ours is read at the head as "
    "it commits a token; theirs is read outside, when text comes out of the program. Tokens/s and gaps are from the "
    "first token to the last; the first token counts from "
)

NOTES = _CLOCK + (
    "when reading the prompt begins. The whole run of theirs has loading and leaving in it; ours stays loaded. "
    "Processor time is what our head and ranks used, with the prompt and all waiting; theirs is not read. Their own "
    "clocks are thread CPU time, process CPU time over all threads, and the inverse of a mean in whole milliseconds: "
    "no two of them compare, with each other or with a wall clock. Texts are compared with our iterative text; theirs "
    "come from a llama.cpp of 2023, so that a near tie may fall otherwise."
)

PEER_NOTES = _CLOCK + (
    "when the prompt was written. The whole run of theirs has loading and sending the weights to the servers in it; "
    "ours stays loaded. Processor time, user and system, is what all threads of our head and ranks, or of llama.cpp's "
    "program and servers, used from the request to the last token, prompt and waiting included. Texts are compared "
    "with our iterative text."
)


def head_to_head(experiment: Experiment) -> Table:
    """A row per contender: ours, then theirs."""
    best = experiment.best
    # Ours have the names of the strategies; theirs say by `of` which one they are.
    best = best.assign(own=best.program == "", kind=best.contender.map(experiment.style_of))
    ours, theirs = best[best.own], best[~best.own]
    best["over_iterative"] = pd.concat([_over(side, side, REFERENCE) for side in (ours, theirs)])
    best["over_speculative"] = pd.concat([_over(side, side, BASELINE) for side in (ours, theirs)])
    best["over_ours"] = pd.concat([_over(some, ours, kind) for kind, some in theirs.groupby("kind")])
    # A program that does not show when it has read the prompt has no time to first token.
    best["ttft_s"] = best.ttft_s.where(best.own | best.loaded_s.notna())
    by = ["place", "contender"]
    found = medians(best, by)
    found["same"] = [_agreement(some, ours[(ours.kind == REFERENCE) & (ours.place == place)])
                     for (place, _), some in best.groupby(by, sort=False)]  # fmt: skip
    chosen = [experiment.chosen(row.contender, row.variant) for row in found.itertuples()]
    found = found.assign(side=found.program.replace("", "ours"), who=(found.kind + " " + chosen).str.rstrip())
    return table_of(found.sort_values("own", ascending=False, kind="stable"), COLUMNS)


def _agreement(some: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Whether a contender's texts are those of our iterative runs of the same prompts."""
    if reference.empty:
        return "nothing to compare with"
    texts = dict(zip(reference.text, reference.generated, strict=True))
    differing: dict[str, str] = {}
    for prompt, own in zip(some.text, some.generated, strict=True):
        expected = texts.get(prompt, "")
        same = next((i for i, (a, b) in enumerate(zip(own, expected, strict=False)) if a != b), None)
        if same is not None:
            differing.setdefault(prompt, f"{prompt} differs from character {same} of {len(expected)} on")
    return "; ".join(differing.values()) or "the same"


def _over(trials: pd.DataFrame, others: pd.DataFrame, kind: str) -> pd.Series:
    return quotients(trials, SPEED, others[others.kind == kind])
