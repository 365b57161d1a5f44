"""What commands print: user text (paths, names, prompts) as it is, never taken for markup."""

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from pipeinfer.cluster.models import Models


def console(*, errors: bool = False) -> Console:
    """For tables and lines. Strings are literal in it; what has a colour is a `rich.text.Text` or has a `style`."""
    return Console(stderr=errors, markup=False, highlight=False, emoji=False)


def print_notes(models: "Models") -> None:
    """What a user should know of the models, on standard error."""
    for note in models.notes:
        print(f"note: {note}", file=sys.stderr)


def print_json(value: Any) -> None:
    """One line of JSON; in ASCII where the output has not all its characters."""
    print(json_line(value, sys.stdout.encoding or "ascii"))


def json_line(value: Any, encoding: str) -> str:
    """`value` (structs, or what JSON has) as JSON that can be written in `encoding`."""
    import msgspec

    try:
        line = msgspec.json.encode(value).decode()
        line.encode(encoding)
    except UnicodeEncodeError:  # A character that the encoding lacks, or the name of a file that is no text at all.
        text = json.dumps(msgspec.to_builtins(value))
        return json.dumps(json.loads(text, parse_constant=lambda _: None))
    return line
