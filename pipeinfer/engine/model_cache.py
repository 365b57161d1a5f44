"""Files made once per machine and kept: models that are grown or exported, stage files.

The cache has a bound. When something new is made, what was used longest ago is removed until the rest fits; never what
a running process has asked for, which it says by a lock on the entry that it holds until it ends.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeinfer.engine.backend import BadModel

try:
    import fcntl
except ImportError:  # Windows removes no file that is open
    fcntl = None  # type: ignore[assignment]

VARIABLE = "PIPEINFER_CACHE"
LIMIT_VARIABLE = "PIPEINFER_CACHE_BYTES"
LIMIT = 64 * 10**9
"""Bytes that the cache may have, unless the variable says how many."""

UNFINISHED = ".making-"
MADE = re.compile(r".+-[0-9a-f]{16}\b.*")
"""Names of what is kept, each with a fingerprint. A folder that was chosen may hold files of other origin."""

BLOCK_BYTES = 512
"""What stat counts in: files with holes take less than their size."""

_locks: dict[Path, int] = {}
"""Descriptors of the entries that this process uses, each with a shared lock."""


def cache_folder(part: str, chosen: str | None = None) -> Path:
    """`chosen`, or the folder `part` of the cache. Raises BadModel for a `chosen` that starts with ~ where no home is.

    Everything in it can be deleted at any time that no rank runs.
    """
    return cache_root() / part if chosen is None else expanded(chosen)


def cache_root() -> Path:
    """$PIPEINFER_CACHE, $XDG_CACHE_HOME/pipeinfer or ~/.cache/pipeinfer; without a home one in the temporary folder."""
    if chosen := os.environ.get(VARIABLE):
        return expanded(chosen)
    if home := os.environ.get("XDG_CACHE_HOME"):
        return expanded(home) / "pipeinfer"
    try:
        return Path("~/.cache/pipeinfer").expanduser()
    except RuntimeError:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir()) / f"pipeinfer-cache-{user}"


def expanded(path: str) -> Path:
    """The path with its ~ replaced. Raises BadModel where this user has no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise BadModel(f"expected a home folder for {path}, came none for this user: set $HOME or give a path without"
                       " ~") from None


def cache_limit() -> int:
    """Bytes that the cache may have. Raises BadModel for a setting that is no number of them."""
    came = os.environ.get(LIMIT_VARIABLE)
    if came is None:
        return LIMIT
    try:
        limit = int(float(came))
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise BadModel(f"expected a number of bytes in ${LIMIT_VARIABLE}, came {came!r}: say for example 20e9")
    return limit


def cache_size() -> int:
    """Bytes on disk of all that is kept in the cache."""
    return sum(entry.size for entry in entries(cache_root()))


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, a file or a folder, after `make` has written it where it was missing. Raises BadModel when it cannot be.

    Ranks on one machine may want the same at once: each writes its own, and one of those is renamed to `path`, so that
    a reader sees all of it or nothing. From here on this process uses it.
    """
    if taken(path):
        return path
    limit = cache_limit()
    try:
        make_folder(path.parent)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder, locked(Path(folder)):
            unfinished = Path(folder) / path.name
            make(unfinished)
            rename(unfinished, path)
    except OSError as error:
        raise BadModel(f"expected to write {path}, came {error.strerror}: make room there or name another folder in"
                       f" ${VARIABLE}") from None
    taken(path)
    make_room(cache_root() if path.is_relative_to(cache_root()) else path.parent, limit)
    return path


def make_folder(folder: Path) -> None:
    """Create it, for this user alone. Raises OSError where another user has: what lies there is not ours to run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = cache_root()
    if root.parent == Path(tempfile.gettempdir()) and hasattr(os, "getuid") and root.exists():
        owner = root.stat().st_uid
        if owner != os.getuid():
            raise PermissionError(1, f"a folder of user {owner}")


def rename(unfinished: Path, path: Path) -> None:
    """Give it its name. A folder does not replace one that another rank has made meanwhile."""
    try:
        os.replace(unfinished, path)
    except OSError:
        if not path.is_dir():
            raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """While it lasts this process uses `path`, and no other removes it."""
    descriptor = lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def taken(path: Path) -> bool:
    """Whether `path` is there; then it counts as used now, and by this process until it ends."""
    if path in _locks and path.exists():
        return True
    descriptor = lock(path)
    if descriptor is None:
        return path.exists()
    if not path.exists():  # another process removed it before the lock was ours
        os.close(descriptor)
        return False
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    if path in _locks:
        os.close(_locks[path])
    _locks[path] = descriptor
    return True


def lock(path: Path, *, alone: bool = False) -> int | None:
    """A descriptor with a lock on `path`, shared or `alone`; None where it is missing or the lock cannot be had."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class CachedFile(NamedTuple):
    """Something that was made: its bytes on disk, and when it was last used, in ns."""

    used: int
    path: Path
    size: int


def entries(root: Path) -> Iterator[CachedFile]:
    """What is kept beneath `root`: in a cache's parts, or in a folder that was chosen."""
    with suppress(OSError):
        for path in sorted(root.iterdir()):
            if path.is_dir() and path.parent == cache_root():
                yield from entries(path)
                continue
            if path.name.startswith(UNFINISHED) or MADE.fullmatch(path.name):
                with suppress(OSError):
                    yield CachedFile(path.stat().st_atime_ns, path, disk_bytes(path))


def disk_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    total = 0
    for file in files:
        status = file.stat()
        total += getattr(status, "st_blocks", -(-status.st_size // BLOCK_BYTES)) * BLOCK_BYTES
    return total


def make_room(root: Path, limit: int) -> None:
    """Remove what was used longest ago until `limit` bytes are kept, as far as no process uses it."""
    kept = sorted(entries(root))
    total = sum(entry.size for entry in kept)
    for entry in kept:
        if total <= limit:
            return
        if removed(entry.path):
            total -= entry.size


def removed(path: Path) -> bool:
    """Delete `path` unless a process uses it."""
    descriptor = lock(path, alone=True)
    if fcntl is not None and descriptor is None:
        return False
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError:
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True
