"""`pipeinfer plugins`: what is installed, what is missing and how to get it."""

from typing import Annotated

import typer


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False) -> None:
    """List backends, transports and strategies, each with its state."""
    from rich.console import Console
    from rich.table import Table

    from pipeinfer.plugins import installed

    found = installed()
    if as_json:
        import msgspec

        print(msgspec.json.encode([plugin._asdict() for plugin in found]).decode())
        return
    table = Table("kind", "name", "from", "state")
    for plugin in found:
        style = "green" if plugin.state == "ok" else "yellow"
        kind = plugin.group.removeprefix("pipeinfer.").removesuffix("s").replace("strategie", "strategy")
        table.add_row(kind, plugin.name, f"{plugin.distribution} {plugin.version}", f"[{style}]{plugin.state}[/]")
    Console().print(table)
