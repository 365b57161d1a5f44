"""`pipeinfer plugins`: what is installed, what is missing and how to get it."""

from pipeinfer.commands.options import AsJson


def plugins(as_json: AsJson = False) -> None:
    """List strategies, draft policies, transports and backends, each with its state."""
    from rich.table import Table
    from rich.text import Text

    from pipeinfer.commands.output import console, print_json
    from pipeinfer.plugins import installed

    found = installed()
    if as_json:
        print_json([plugin._asdict() for plugin in found])
        return
    table = Table("kind", "name", "from", "state")
    for plugin in found:
        style = "green" if plugin.state == "ok" else "yellow"
        kind = plugin.group.removeprefix("pipeinfer.").removesuffix("s").replace("strategie", "strategy")
        table.add_row(kind, plugin.name, f"{plugin.distribution} {plugin.version}", Text(plugin.state, style))
    console().print(table)
