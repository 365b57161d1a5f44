"""Keeps Python's garbage collector from running while something is timed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: a full one takes longer than many tokens, and would be measured with them."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def look_at_trials_alone() -> None:
    """From here on collections look at what comes, and not at each module and the model once more: until `gc.unfreeze`.
    For a rank that has its process to itself."""
    gc.collect()
    gc.freeze()


@contextmanager
def looking_at_trials_alone() -> Iterator[None]:
    """The same for a while, where what comes after it is another matter."""
    look_at_trials_alone()
    try:
        yield
    finally:
        gc.unfreeze()
