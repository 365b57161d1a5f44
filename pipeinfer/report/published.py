"""What the paper claims (paper_figures/reference/claims.toml)."""

from functools import cache

from pipeinfer import workload
from pipeinfer.assets import asset
from pipeinfer.workload import FileEntry


class Published(FileEntry, frozen=True):
    """An entry of the file. `value` stays absent where none could be obtained."""

    claim: str
    published: str
    source: str
    value: float | None = None


@cache
def published_claims() -> dict[str, Published]:
    """Every claim, by its id."""
    return workload.load(asset("paper_figures/reference/claims.toml"), dict[str, Published])
