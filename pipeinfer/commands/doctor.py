"""`pipeinfer doctor`: is this machine fit for a measurement?"""

from typing import Annotated

from pipeinfer.commands.options import PIPELINE, AsJson, option

COLOURS = {"ok": "green", "advice": "yellow", "unknown": "dim"}


def doctor(
    nodes: Annotated[int, option(PIPELINE, "Ranks that will run here, the draft's too; default: 4.", min=1)] = 4,
    as_json: AsJson = False,
) -> None:
    """Look for what would disturb a measurement on this machine, and whether each engine computes on it; name the cure.
    Changes nothing."""
    from rich.table import Table
    from rich.text import Text

    from pipeinfer.cluster.doctor import examine
    from pipeinfer.cluster.engines import examine_engines
    from pipeinfer.commands.output import console, print_json

    findings = examine(nodes) + examine_engines()
    if as_json:
        print_json([finding._asdict() for finding in findings])
        return
    table = Table("", "state", "found")
    table.add_column("cure", overflow="fold")
    for finding in findings:
        table.add_row(finding.what, Text(finding.state, COLOURS[finding.state]), finding.found, finding.cure)
    console().print(table)
