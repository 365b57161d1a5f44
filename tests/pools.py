"""A pool of processes, as `pipeinfer reproduce` starts it, that ends with the test."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from multiprocessing import resource_tracker

import pytest

from pipeinfer.study.executors import local


@contextmanager
def pool(jobs: int) -> Iterator[Executor]:
    """`local(jobs)`, until here, and so long the process that multiprocessing keeps beside its pools."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONSAFEPATH", "1")  # which `local` sets for the rest of a command
            with local(jobs) as found:
                yield found
    finally:
        local.cache_clear()
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
