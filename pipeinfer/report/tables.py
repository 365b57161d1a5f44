"""What is said of an experiment in words and tables: results, what has no figure and why, simulations beside."""

from collections.abc import Iterator

import pandas as pd

from pipeinfer.report import league
from pipeinfer.report.at_once import ABOUT, at_once_table
from pipeinfer.report.categories import by_category
from pipeinfer.report.experiment import Experiment, medians
from pipeinfer.report.head_to_head import NOTES, PEER_NOTES, head_to_head
from pipeinfer.report.page import Block, Columns, Table, ends, in_ms, rounded, table_of
from pipeinfer.report.prediction import error_summary, every_cell, predictions
from pipeinfer.report.swept import sweep_notes
from pipeinfer.results.analysis import SPEED
from pipeinfer.results.frame import PLACE
from pipeinfer.study.places import Place

RESULTS: Columns = {
    "where": ("where", ""), "who": ("strategy", ""), "tokens_per_s": ("tokens/s", rounded),
    "as_simulated": ("as simulated", "{}"), "over_iterative": ("over iterative", "{:.2f}x"),
    "over_speculative": ("over speculative", "{:.2f}x"), "itl_mean_s": ("mean gap (ms)", in_ms),
    "itl_p50_s": ("p50 (ms)", in_ms), "itl_p95_s": ("p95 (ms)", in_ms), "itl_p99_s": ("p99 (ms)", in_ms),
    "ttft_s": ("first token (ms)", in_ms), "ttft_decode_s": ("decode only (ms)", in_ms),
    "acceptance_length": ("acceptance length", rounded), "row_cost": ("further row", "{:.2f}"),
    "largest_rank_gb": ("largest rank (GB)", rounded), "limit_tokens_per_s": ("limit (tokens/s)", rounded),
    "trials": ("trials", "{:d}"),
}  # fmt: skip
BESIDE: Columns = {
    "where": ("where", ""), "who": ("strategy", ""), "tokens_per_s_simulated": ("simulated (tokens/s)", rounded),
    "tokens_per_s": ("emulated (tokens/s)", rounded), "speed": ("deviation", "{:+z.1%}"),
    "first": ("of the first token", "{:+z.1%}"), "trials": ("trials", "{:d}"),
}  # fmt: skip
WITHOUT: Columns = {name: (name, "") for name in ("where", "strategy", "options", "draw")}

TIES = (
    "These texts part from the iterative run's where its best two tokens were closer than the rounding of this "
    "arithmetic (pipeinfer/results/divergence.py). The schedule decides which rows are computed together and with it "
    "which of the two is taken, so they keep their figures:"
)


def results(experiment: Experiment) -> Table:
    """A row per contender and place; beside what was measured what was predicted."""
    recipe = experiment.recipe
    if recipe.artifact:
        return head_to_head(experiment)
    if recipe.checked:
        return error_summary(predictions(experiment))
    if recipe.requests:
        return at_once_table(experiment)
    return league.league_table(experiment) if recipe.draws("league") else place_by_place(experiment)


def place_by_place(experiment: Experiment, title: str = "") -> Table:
    """What was found of each contender in each place."""
    found = experiment.medians
    wheres = {number: experiment.where(number) or place.text for number, place in experiment.places.items()}
    error = (found.predicted_tokens_per_s / found.tokens_per_s - 1).map("{:+z.0%}".format)
    predicted = found.predicted_tokens_per_s.map(rounded) + " (" + error + ")"
    found = found.assign(
        where=found.place.map(wheres), who=[experiment.best_of(row) for row in found.itertuples()],
        as_simulated=predicted.where(found.predicted_tokens_per_s.notna()),
    )  # fmt: skip
    known = row_cost(experiment)
    return table_of(found, RESULTS, title or f"a further row of a run costs {known} of a run of one" * bool(known))


def row_cost(experiment: Experiment) -> str:
    """What a further row cost where it was not simulated, over all places: `0.12 to 0.15`; empty: not measured."""
    known = experiment.valid.row_cost.dropna()
    return ends(known, "{:.2f}") if len(known) else ""


def notes(experiment: Experiment) -> Iterator[Block]:
    """What follows the results."""
    recipe = experiment.recipe
    if recipe.artifact:
        yield PEER_NOTES if recipe.beside_llama_cpp else NOTES
    if recipe.live is not None and experiment.best.category.notna().any():
        yield by_category(experiment)
    if recipe.requests:
        yield ABOUT
    if recipe.draws("league"):
        yield league.about(experiment)
        yield place_by_place(experiment, "Place by place")
    if recipe.checked:
        yield every_cell(predictions(experiment), experiment)
    if recipe.emulation is not None:
        yield from _emulated_blocks(experiment)
    yield from sweep_notes(experiment)
    for status, words in (("failed", ""), ("differs", ""), ("no reference", ""), ("tie", TIES)):
        some = experiment.trials[experiment.trials.status == status]
        if not some.empty:
            yield words or "These trials have no performance figure:"
            some = some.assign(where=[Place.of(row).text for row in some.itertuples()], strategy=some.contender)
            columns: Columns = {**WITHOUT, "why": ("first divergence" if words else "why", "")}
            yield table_of(some.assign(options=some.variant), columns)
    if experiment.missing:
        yield f"{experiment.missing} cells were not run."


# What was emulated, and the simulation of the same


def emulated_and_simulated(experiment: Experiment) -> pd.DataFrame:
    """Of each emulated variant the medians, with `simulated_tokens_per_s`, and the deviations `speed` and `first` from
    it (medians over the draws), and whether the token ids are the `same`."""
    keys = ["contender", "variant", "draw", *PLACE]
    twins = experiment.simulated[[*keys, "token_ids", SPEED, "ttft_s"]]
    both = experiment.valid.merge(twins, on=keys, suffixes=("", "_simulated"))
    both["speed"] = both[SPEED] / both[f"{SPEED}_simulated"] - 1
    both["first"] = both.ttft_s / both.ttft_s_simulated - 1
    both["same"] = [
        list(one) == list(other) for one, other in zip(both.token_ids, both.token_ids_simulated, strict=True)
    ]
    by = ["place", "contender", "variant"]
    return medians(both, by).assign(same=both.groupby(by, sort=False).same.all().to_numpy())


def _emulated_blocks(experiment: Experiment) -> Iterator[Block]:
    found = emulated_and_simulated(experiment)
    sizes = found.speed.abs().dropna()
    text = "nothing to compare"
    if len(sizes):
        text = (
            f"tokens/s deviate by {sizes.median():.1%} in the median, {sizes.max():.1%} at most ({len(sizes)} variants)"
        )
    differing = int((~found.same).sum())
    tokens = f"{differing} variants gave other token ids!" if differing else "All token ids are the simulation's."
    yield f"Emulated beside simulated, of the same cells: {text}. {tokens}"
    yield table_of(experiment.in_words(found), BESIDE, "Beside the simulation")
