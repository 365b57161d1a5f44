"""`pipeinfer simulate`: strategies side by side on a cluster that need not exist."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipeinfer.commands.options import MODELS, PIPELINE, TEXT, AsJson, option, path_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from pipeinfer.modelling.side_by_side import SideBySide
    from pipeinfer.modelling.simulate import BestFound, Limits, Setting


def simulate(
    cluster: Annotated[
        str, option(PIPELINE, "A name of workloads/clusters.toml (default: haswell-gigabit), or a FILE.")
    ] = "haswell-gigabit",
    nodes: Annotated[
        int | None, option(PIPELINE, "Ranks, the draft's included; default: 8, or as calibrated.", min=1)
    ] = None,
    draft_ranks: Annotated[
        int | None, option(PIPELINE, "Of them the draft's; default: 1, or as calibrated.", min=1)
    ] = None,
    strategy: Annotated[list[str] | None, option(PIPELINE, "May be given again; default: the three.")] = None,
    accounting: Annotated[str, option(PIPELINE, "same-ranks (default) or as-published (docs/fairness.md).")] = (
        "same-ranks"
    ),
    sweep: Annotated[bool, option(PIPELINE, "Each strategy at its best K or micro-batch and cutoff (default).")] = True,
    pair: Annotated[
        str | None, option(MODELS, "Of workloads/pairs.toml; default: dolphin-tinyllama, or as calibrated.")
    ] = None,
    acceptance: Annotated[str, option(MODELS, "poor, good (default), 0 to 1, `varied good`, or a recorded trace.")] = (
        "good"
    ),
    trace: Annotated[Path | None, path_option(MODELS, "Accept as in this trace of `pipeinfer record`.")] = None,
    width_cost: Annotated[float, option(MODELS, "Scales the arithmetic per row; default: 1, and 0 is free.")] = 1.0,
    tokens: Annotated[int, option(TEXT, "Tokens to generate; default: 128.", min=2)] = 128,
    prompt: Annotated[int, option(TEXT, "Tokens of the prompt; default: 64.", min=1)] = 64,
    seed: Annotated[int, option(TEXT, "Draws which drafts are accepted, or picks a trace's text; default: 0.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Simulate strategies on a cluster profile and print their metrics side by side."""
    from pipeinfer.commands.output import print_json
    from pipeinfer.modelling.side_by_side import simulate as run

    done = run(
        cluster, pair, strategies=strategy or (), nodes=nodes, draft_ranks=draft_ranks, acceptance=acceptance,
        trace=trace, tokens=tokens, prompt=prompt, seed=seed, accounting=accounting, width_cost=width_cost, sweep=sweep,
    )  # fmt: skip
    if as_json:
        print_json(_as_object(done))
    else:
        _show(done)


def _as_object(done: "SideBySide") -> dict[str, Any]:
    from pipeinfer.results.metrics import summary

    strategies = [{**summary(one.trial), "options": one.options, "tried": one.tried} for one in done.strategies]
    return {"setting": done.setting, "limits": done.limits, "strategies": strategies}


def _show(done: "SideBySide") -> None:
    from pipeinfer.commands.output import console

    terminal, setting, bound = console(), done.setting, done.limits
    terminal.print(done.models, style="bold")
    terminal.print(f"{setting.nodes} {done.cluster}")
    terminal.print(
        f"{setting.prompt} + {setting.tokens} tokens, acceptance {setting.acceptance:.3g} per drafted token "
        f"({_drafts(setting)}), ranks: {setting.accounting}"
    )
    terminal.print(_table(done.strategies, bound))
    terminal.print(
        f"limit: closed form for i.i.d. acceptance where width, links and cancellation cost nothing (speculative: its "
        f"best K, {bound.synchronous_k}); no chain of drafts passes {bound.ceiling:.2f} tokens/s.",
        style="dim",
    )


def _drafts(setting: "Setting") -> str:
    if setting.trace is not None:
        return f"as recorded, text {setting.seed}"
    return "by position, assumed" if setting.difficulty is not None else "i.i.d., assumed"


def _table(found: "Sequence[BestFound]", bound: "Limits") -> "Table":
    from rich.table import Table

    from pipeinfer.results.metrics import summary

    table = Table("", *[_heading(one) for one in found])
    values = [summary(one.trial) for one in found]
    base = values[0]["tokens_per_second"]
    rows = {
        "tokens/s": [f"{v['tokens_per_second']:.2f}" for v in values],
        "limit, tokens/s": [_limit(one, bound) for one in found],
        f"speedup over {found[0].strategy}": [f"{v['tokens_per_second'] / base:.2f}" for v in values],
        "first token, with prompt": [_seconds(v["ttft_s"]) for v in values],
        "first token, decode only": [_seconds(v["ttft_decode_s"]) for v in values],
        **{f"between tokens, {name}": [_seconds(v["itl_s"][name]) for v in values] for name in values[0]["itl_s"]},
        "acceptance length": [_number(v["acceptance_length"]) for v in values],
        "acceptance rate": [_number(v["acceptance_rate"]) for v in values],
        "runs": [str(v["runs"]["submitted"]) for v in values],
        "runs cancelled": [str(v["runs"]["cancelled"]) for v in values],
        "rows wasted": [str(v["wasted_rows"]) for v in values],
        "compute saved by cancelling": [_seconds(v["compute_saved_s"]) for v in values],
        "utilisation": [f"{v['utilisation']:.0%}" for v in values],
        "largest memory on a rank": [f"{max(r['peak_memory'] for r in v['ranks']) / 1e9:.1f} GB" for v in values],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _heading(one: "BestFound") -> str:
    options = ", ".join(f"{name} {value}" for name, value in one.options.items())
    options += ", the largest there is" * bool(one.at_edge)
    return f"{one.strategy}\n({options}; best of {one.tried})" if one.tried > 1 else one.strategy


def _limit(one: "BestFound", bound: "Limits") -> str:
    from pipeinfer.plugins import open_strategy

    return _number(bound.of(open_strategy(one.strategy, one.options)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.0f} ms"
