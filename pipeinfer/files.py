"""Files that a command writes at its end, known to be writable before the work and never half written; and the
system's own."""

import errno
import os
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raise OSError where `path` cannot be written. Makes no file and changes none."""
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return  # a pipe or a device: opening it may already mean something
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`; until all of it is on the disk, what was there before stays. Raises OSError with the
    file's name, as when the disk is full."""
    if path.exists() and not path.is_file():
        partial = path  # a pipe or a device
    else:
        path = path.resolve()  # A link stays one.
        partial = path.with_name(f".{os.getpid()}-{path.name}"[:200])
    try:
        with partial.open("wb") as file:
            file.write(content)
        if partial != path:
            partial.replace(path)
    except OSError as problem:
        if partial != path:
            partial.unlink(missing_ok=True)
        raise OSError(problem.errno, problem.strerror, str(path)) from problem


def system_text(path: Path) -> str:
    """What a file of the system's own says; empty where it cannot be read. It may name things, such as control groups,
    whose names are any bytes: in the text they are as in a Path."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
