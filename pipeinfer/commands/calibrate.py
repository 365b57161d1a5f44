"""`pipeinfer calibrate`: measure this cluster with this pair."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pipeinfer.commands.options import OUTPUT, ClusterOptions, SamplingOptions, path_option, with_options

if TYPE_CHECKING:
    from rich.table import Table

    from pipeinfer.modelling.profile import Profile

SHOWN_ROWS = (1, 4, 16)


@with_options
def calibrate(
    cluster: ClusterOptions,
    sampling: SamplingOptions,
    out: Annotated[Path, path_option(OUTPUT, "The profile, as JSON; default: profile.json.")] = Path("profile.json"),
    figure: Annotated[Path | None, path_option(OUTPUT, "Draw the times over rows: FILE.svg and .png.")] = None,
) -> None:
    """Measure this cluster, and write a profile for `simulate`, the emulated backend and `--layers auto`."""
    settings = cluster.settings()
    plan = settings.plan(*settings.settle(), drafts=True)  # First: of a world's processes one alone goes on.
    from rich.text import Text

    from pipeinfer.cluster.models import Models
    from pipeinfer.commands.output import console, print_notes
    from pipeinfer.files import check_writable
    from pipeinfer.modelling.calibrate import calibrate as run
    from pipeinfer.modelling.profile import write_profile

    models = Models(plan)
    how = sampling.sampling()
    check_writable(out)
    print_notes(models)
    with console(errors=True).status("starting the ranks") as status:
        profile = run(models, how, lambda what: status.update(Text(f"measuring {what}")))
    write_profile(profile, out)
    if figure is not None:
        from pipeinfer.report.layer_times import layer_times

        layer_times(profile, figure)
    console().print(ranks_table(profile), links_table(profile), _summary(profile))
    print(out)


def ranks_table(profile: "Profile") -> "Table":
    """Per rank what a layer takes, and what is free."""
    from rich.table import Table

    shares = profile.draft_shares
    grid = shares[0].forward
    context = grid.contexts[len(grid.contexts) // 2]
    rows = [count for count in SHOWN_ROWS if count <= grid.rows[-1]]
    names = [f"{count} row{'s' * (count > 1)}" for count in rows]
    table = Table("rank", "host", "free", *[f"layer, {name}" for name in names], f"head, {names[0]}", "rest, 1 row",
                  title=f"{profile.target.name}, milliseconds at {context} positions")  # fmt: skip
    for number, rank in enumerate(profile.ranks):
        layer = [_ms(rank.layer.at(count, context)) for count in rows]
        rest = [_ms(rank.head.at(1, context)), _ms(rank.run.at(1, context))]
        table.add_row(str(number), rank.host, f"{rank.memory_bytes / 1e9:.1f} GB", *layer, *rest)
    for number, share in enumerate(shares, start=len(profile.ranks) - len(shares)):
        part = f"{profile.part_of_draft(share)} of {profile.draft_model.name}"
        table.add_row(str(number), part, "", *[_ms(share.forward.at(count, context)) for count in rows], "", "")
    return table


def links_table(profile: "Profile") -> "Table":
    """Per link its latency and bandwidth."""
    from rich.table import Table

    from pipeinfer.units import rate

    table = Table("from", "to", "latency", "bandwidth", title="links")
    for link in profile.links:
        ends = ["head" if rank < 0 else f"rank {rank}" for rank in (link.source, link.target)]
        table.add_row(*ends, f"{link.latency_s * 1e6:.0f} us", rate(link.bandwidth_bps))
    return table


def _summary(profile: "Profile") -> str:
    crowd = ", ".join(f"{factor:.2f}" for factor in profile.contention)
    return (
        f"while 1, 2, ... ranks of a host compute, each takes {crowd} times as long; "
        f"a run costs a rank {profile.message_s * 1e6:.0f} us besides, an event the head {profile.head_s * 1e6:.0f} us"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"
