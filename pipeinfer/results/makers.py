"""What makes tables and figures, beside what they are made from: where it is another, they are made anew."""

import hashlib
from functools import cache
from importlib.metadata import distributions

import msgspec

from pipeinfer.assets import PACKAGE, asset


@cache
def makers_digest() -> str:
    """Of our sources, of what the paper published, and of all that is installed. The other files that sources read
    decide on a cell or a recipe, which is in what tables and figures are made from."""
    files = [*sorted(PACKAGE.rglob("*.py")), *sorted(asset("paper_figures/reference").iterdir())]
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    installed = sorted(f"{one.name} {one.version}" for one in distributions())
    return hashlib.sha256(msgspec.json.encode((sources, installed))).hexdigest()
