"""`pipeinfer doctor`: is this machine fit for a measurement?"""

from typing import Annotated

import typer

COLOURS = {"ok": "green", "advice": "yellow", "unknown": "dim"}


def doctor(
    nodes: Annotated[int, typer.Option(help="Ranks that are going to run here, the draft's included.", min=1)] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Look for what would disturb a measurement on this machine, and name the cure. Changes nothing."""
    from rich.console import Console
    from rich.table import Table

    from pipeinfer.cluster.doctor import examine

    findings = examine(nodes)
    if as_json:
        import msgspec

        print(msgspec.json.encode([finding._asdict() for finding in findings]).decode())
        return
    table = Table("", "state", "found", "cure")
    for finding in findings:
        table.add_row(finding.what, f"[{COLOURS[finding.state]}]{finding.state}[/]", finding.found, finding.cure)
    Console().print(table)
