"""Files made once per machine and kept: stage files and exported models."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeinfer.backend import BadModel

VARIABLE = "PIPEINFER_CACHE"


def cache_folder(chosen: str | None) -> Path:
    """`chosen`, or this backend's folder in $PIPEINFER_CACHE, $XDG_CACHE_HOME/pipeinfer or ~/.cache/pipeinfer.

    Stage files of one split together are as large as the model itself. Everything in the folder can be deleted at any
    time that no stage runs.
    """
    if chosen is not None:
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or f"{home}/pipeinfer").expanduser() / "llamacpp"


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, after `make` has written it where it was missing. Raises BadModel when it cannot be written.

    Ranks on one machine may want the same file at once: each writes its own and the last to rename it wins, so that a
    reader sees all of a file or none.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            make(unfinished)
            os.replace(unfinished, path)
    except OSError as error:
        raise BadModel(f"expected to write {path}, came {error.strerror}: make room there or name another folder in"
                       f" ${VARIABLE}") from None
    return path
