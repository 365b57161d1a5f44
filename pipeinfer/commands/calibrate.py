"""`pipeinfer calibrate`: measure this cluster with this pair."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pipeinfer.modelling.profile import Profile

SHOWN_ROWS = (1, 4, 16)


def calibrate(
    out: Annotated[Path, typer.Option(help="The profile, as JSON.")] = Path("profile.json"),
    figure: Annotated[Path | None, typer.Option(help="Draw the times over rows: FILE.svg and .png.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Ranks, the draft's too; default: 4, or MPI's.", min=2)] = None,
    layers: Annotated[
        str | None, typer.Option(help="Like 4,4/1,1: a rank per number, the draft's after the /, with those layers.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Who computes.")] = "numpy",
    backend_option: Annotated[list[str] | None, typer.Option(help="A backend option, like threads=4.")] = None,
    target: Annotated[str, typer.Option(help="The target model.")] = "builtin:target",
    draft: Annotated[str, typer.Option(help="The draft model, measured on the last rank or ranks.")] = "builtin:draft",
    transport: Annotated[str | None, typer.Option(help="tcp, inproc, mpi; default: mpi under mpirun, or tcp")] = None,
    launcher: Annotated[str | None, typer.Option(help="mpi: start the ranks here by mpiexec.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Limit every link, like 1Gbit.")] = None,
    latency: Annotated[str | None, typer.Option(help="Delay every link, like 0.2ms.")] = None,
    cpu_share: Annotated[float, typer.Option(help="As in generate.", min=0.01, max=1.0)] = 1.0,
    temperature: Annotated[float, typer.Option(help="Sample like this; 0 is greedy.", min=0.0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Among the k likeliest tokens; 0: all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Within this probability mass.", min=0.0, max=1.0)] = 1.0,
    workers: Annotated[str | None, typer.Option(help="Addresses of running workers, in rank order.")] = None,
    key: Annotated[Path | None, typer.Option(help="The workers' key file.")] = None,
) -> None:
    """Measure this cluster, and write a profile for `simulate`, the emulated backend and `--layers auto`."""
    from rich.text import Text

    from pipeinfer.cluster.mpi_world import settle
    from pipeinfer.commands.generate import check_agreement, key_values, make_plan, rank_count
    from pipeinfer.commands.output import console
    from pipeinfer.core.messages import Sampling
    from pipeinfer.files import check_writable
    from pipeinfer.modelling.calibrate import calibrate as run
    from pipeinfer.modelling.profile import write_profile
    from pipeinfer.report.layer_times import layer_times

    given = nodes
    nodes = nodes or rank_count(layers, drafts=True)
    transport, nodes = settle(launcher, "tcp" if workers else transport, nodes)
    check_agreement(given, layers, workers, key, drafts=True)
    plan = make_plan(
        drafts=True, nodes=nodes, layers=layers, profile=None, backend=backend,
        backend_options=key_values(backend_option), target=target, draft=draft, transport=transport,
        bandwidth=bandwidth, latency=latency, cells=0, sequences=64,
        workers=workers, key=key, trace=False, cpu_share=cpu_share,
    )  # fmt: skip
    check_writable(out)
    with console(errors=True).status("starting the ranks") as status:
        profile = run(plan, Sampling(temperature, top_k, top_p), lambda what: status.update(Text(f"measuring {what}")))
    write_profile(profile, out)
    if figure is not None:
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
