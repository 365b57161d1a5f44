"""Files made once per machine and kept: models that are grown or exported, stage files."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeinfer.engine.backend import BadModel

VARIABLE = "PIPEINFER_CACHE"


def cache_folder(part: str, chosen: str | None = None) -> Path:
    """`chosen`, or the folder `part` in $PIPEINFER_CACHE, $XDG_CACHE_HOME/pipeinfer or ~/.cache/pipeinfer.

    Everything in it can be deleted at any time that no rank runs.
    """
    if chosen is not None:
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or f"{home}/pipeinfer").expanduser() / part


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, a file or a folder, after `make` has written it where it was missing. Raises BadModel when it cannot be.

    Ranks on one machine may want the same at once: each writes its own, and one of those is renamed to `path`, so that
    a reader sees all of it or nothing.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            make(unfinished)
            rename(unfinished, path)
    except OSError as error:
        raise BadModel(f"expected to write {path}, came {error.strerror}: make room there or name another folder in"
                       f" ${VARIABLE}") from None
    return path


def rename(unfinished: Path, path: Path) -> None:
    """Give it its name. A folder does not replace one that another rank has made meanwhile."""
    try:
        os.replace(unfinished, path)
    except OSError:
        if not path.is_dir():
            raise
