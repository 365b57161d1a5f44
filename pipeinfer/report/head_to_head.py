"""The authors' programs and ours in one table, all by the same clock."""

import pandas as pd

from pipeinfer.report.experiment import Experiment
from pipeinfer.report.page import Table, compact, number, rounded
from pipeinfer.results.analysis import BASELINE, REFERENCE, SPEED, quotients

HEAD = ["program", "strategy", "tokens/s", "processor time per token", "over its iterative", "over its speculative",
        "over ours", "mean gap", "first token", "whole run", "tokens/s by its own clock", "text", "trials"]  # fmt: skip

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
    # Ours have the names of the strategies; theirs say by `of` which one they are.
    best = experiment.best.assign(
        own=experiment.best.program == "", kind=experiment.best.contender.map(experiment.style_of)
    )
    rows = [_row(experiment, best, some) for _, some in best.groupby(["place", "contender"], sort=False)]
    rows.sort(key=lambda row: row[0] != "ours")
    return compact(Table(HEAD, rows, range(2, 11)))


def _row(experiment: Experiment, best: pd.DataFrame, some: pd.DataFrame) -> list[str]:
    first = some.iloc[0]
    side = best[(best.own == first.own) & (best.place == first.place)]
    ours = best[best.own & (best.place == first.place)]
    chosen = experiment.chosen(first.contender, first.variant)
    # A program that does not show when it has read the prompt has no time to first token.
    began = some if first.own else some[some.loaded_s.notna()]
    return [
        first.program or "ours",
        f"{first.kind} {chosen}".strip(),
        rounded(some.tokens_per_s.median()),
        _seconds(some.processor_s_per_token.median()),
        _ratio(some, side[side.kind == REFERENCE]),
        _ratio(some, side[side.kind == BASELINE]),
        "-" if first.own else _ratio(some, ours[ours.kind == first.kind]),
        _seconds(some.itl_mean_s.median()),
        _seconds(began.ttft_s.median()),
        _seconds(some.whole_s.median()),
        rounded(some.own_clock_tokens_per_s.median()),
        _agreement(some, ours[ours.kind == REFERENCE]),
        str(len(some)),
    ]


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


def _ratio(some: pd.DataFrame, other: pd.DataFrame) -> str:
    return number(quotients(some, SPEED, other).median(), "{:.2f}x")


def _seconds(value: float) -> str:
    return number(1e3 * value, "{:.1f} ms") if value < 1 else number(value, "{:.2f} s")
