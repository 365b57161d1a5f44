"""What of this machine would disturb a measurement, and the cure for it. Nothing is changed, little is measured."""

import os
import re
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pipeinfer import units
from pipeinfer.engine.model_cache import cache_limit, cache_root, cache_size
from pipeinfer.errors import one_line
from pipeinfer.runtime.cpu_latency import REQUESTS, without_deep_idle
from pipeinfer.runtime.processor_quota import bound_cores

BUSY = 0.1
"""Load per core above which others are in the way."""

STOLEN = 0.01
"""Share of the time since boot that the host gave to other guests."""

NAP_S = 5e-4
NAPS = 60
LATE_S = 5e-4
"""Sleeps of NAP_S, as the emulated backend sleeps, may end so much late in 95 of 100."""

SHARED_PER_RANK = 4 << 20
"""Bytes: MPICH started 9 ranks with 8 MiB and none with 1 MiB."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")

State = Literal["ok", "advice", "unknown"]


class Diagnosis(NamedTuple):
    """One thing that was looked at. `cure` is empty where nothing has to be done."""

    what: str
    state: State
    found: str
    cure: str = ""


def examine(ranks: int, root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> list[Diagnosis]:
    """Every finding for a pipeline of `ranks` ranks. `root` is where /proc and /sys are found."""
    cores = bound_cores()
    return [
        load(root, cores),
        cores_for_ranks(cores, ranks),
        cpu_limit(root, cores),
        threads(environment, cores, ranks),
        governor(root),
        stolen_time(root),
        swap(root),
        session_groups(root),
        clock(root),
        idle_cores(root),
        naps(),
        python_build(),
        mpi(),
        shared_memory(root, ranks),
        model_cache(),
    ]


def load(root: Path, cores: int) -> Diagnosis:
    """What else runs."""
    text = _read(root / "proc/loadavg")
    if text is None:
        return Diagnosis("load", "unknown", "no /proc/loadavg")
    average = float(text.split()[0])
    found = f"{average:.2f} over the last minute, {cores} cores"
    if average <= BUSY * cores:
        return Diagnosis("load", "ok", found)
    return Diagnosis("load", "advice", found, "wait or stop what runs (top shows it); compare runs that took turns")


def cores_for_ranks(cores: int, ranks: int) -> Diagnosis:
    """A process per rank, and the head's."""
    found = f"{cores} cores for {ranks} ranks and the head"
    if cores > ranks:
        return Diagnosis("cores", "ok", found)
    cure = f"ranks will wait for one another's cores: use {ranks + 1} cores, fewer ranks, or emulate or simulate"
    return Diagnosis("cores", "advice", found, cure)


def cpu_limit(root: Path, cores: int) -> Diagnosis:
    """A container's quota: when it is used up, every process in it stands still for the rest of the period."""
    quota = _quota(root)
    if quota is None:
        return Diagnosis("CPU limit", "ok", "none")
    found = f"{quota:g} cores' worth of time in every period"
    if quota >= cores:
        return Diagnosis("CPU limit", "ok", found)
    return Diagnosis("CPU limit", "advice", found, "give the container whole cores (cpuset) in place of a quota")


def _quota(root: Path) -> float | None:
    """Cores that the control group may use (version 2, then 1); None: all."""
    text = _read(root / "sys/fs/cgroup/cpu.max")
    if text is not None:
        quota, period = text.split()
        return None if quota == "max" else int(quota) / int(period)
    quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "-1"
    period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us") or "100000"
    return int(quota) / int(period) if int(quota) > 0 else None


def threads(environment: Mapping[str, str], cores: int, ranks: int) -> Diagnosis:
    """Each rank's numerical library starts as many threads as there are cores unless it is told otherwise."""
    values = {name: environment.get(name, "") for name in THREADS}
    found = ", ".join(f"{name} {value or 'not set'}" for name, value in values.items())
    most = max((int(value) if value.isdecimal() else cores for value in values.values()), default=1)
    if most * ranks <= max(cores, ranks):
        return Diagnosis("threads", "ok", found)
    cure = f"export {' '.join(f'{name}={max(1, cores // ranks)}' for name in THREADS)}"
    return Diagnosis("threads", "advice", found, cure)


def governor(root: Path) -> Diagnosis:
    """What decides on the clock frequency."""
    paths = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    names = sorted({_read(path) or "unknown" for path in paths})
    if not names:
        return Diagnosis("CPU governor", "unknown", "not visible, as in most virtual machines and containers")
    if names == ["performance"]:
        return Diagnosis("CPU governor", "ok", "performance")
    return Diagnosis("CPU governor", "advice", ", ".join(names), "sudo cpupower frequency-set --governor performance")


def stolen_time(root: Path) -> Diagnosis:
    """Time that the host gave to other guests while this one wanted to run."""
    text = _read(root / "proc/stat")
    if text is None:
        return Diagnosis("stolen time", "unknown", "no /proc/stat")
    ticks = [int(field) for field in text.splitlines()[0].split()[1:9]]
    share = ticks[7] / (sum(ticks) or 1)
    found = f"{share:.1%} since boot"
    if share <= STOLEN:
        return Diagnosis("stolen time", "ok", found)
    return Diagnosis("stolen time", "advice", found, "use a machine, or a kind of instance, with cores of its own")


def swap(root: Path) -> Diagnosis:
    """Memory that was swapped out comes back in the middle of a measurement."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE))
    if "SwapTotal" not in sizes:
        return Diagnosis("swap", "unknown", "no /proc/meminfo")
    used = (int(sizes["SwapTotal"]) - int(sizes["SwapFree"])) // 1024
    if used == 0:
        return Diagnosis("swap", "ok", "none in use")
    return Diagnosis("swap", "advice", f"{used} MiB in use", "free memory, then: sudo swapoff -a && sudo swapon -a")


def session_groups(root: Path) -> Diagnosis:
    """Where the kernel shares cores out among sessions (setsid) first, a niceness counts only within one of them."""
    if _read(root / "proc/sys/kernel/sched_autogroup_enabled") != "1":
        return Diagnosis("session groups", "ok", "off: nice works between all processes")
    found = "on: nice does nothing between processes of different sessions"
    cure = "for what has to give way: echo 19 | sudo tee /proc/PID/autogroup, PID being any process of its session"
    return Diagnosis("session groups", "advice", found, cure)


def clock(root: Path) -> Diagnosis:
    """What monotonic time comes from, how fine it is and what a look at it costs."""
    source = _read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown source"
    info = time.get_clock_info("monotonic")
    found = f"{source}, resolution {info.resolution * 1e9:.0f} ns, {_cost_of_a_look() * 1e9:.0f} ns a look"
    if source not in SLOW_CLOCKS and info.resolution <= 1e-6:
        return Diagnosis("clock", "ok", found)
    cure = "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
    return Diagnosis("clock", "advice", found, cure)


def _cost_of_a_look(looks: int = 10_000) -> float:
    start = time.monotonic()
    for _ in range(looks):
        time.monotonic()
    return (time.monotonic() - start) / looks


def idle_cores(root: Path) -> Diagnosis:
    """A core that sleeps between two messages wakes up late; sessions ask that none does."""
    requests = root / REQUESTS.relative_to("/")
    if not requests.exists():
        return Diagnosis("idle cores", "unknown", f"no {REQUESTS}: they may sleep between messages")
    if os.access(requests, os.W_OK):
        return Diagnosis("idle cores", "ok", "kept awake during sessions")
    cure = f"sudo chmod o+w {REQUESTS}, which holds until the next boot"
    return Diagnosis("idle cores", "advice", f"sleep between messages: this user may not write {REQUESTS}", cure)


def naps() -> Diagnosis:
    """How late a short sleep ends: emulated compute and idle ranks rest on it."""
    with without_deep_idle():
        late = sorted(_nap() - NAP_S for _ in range(NAPS))
    most = late[int(0.95 * NAPS)]
    median = statistics.median(late)
    found = f"{NAP_S * 1e3:g} ms end {median * 1e3:.2f} ms late, {most * 1e3:.2f} ms at the 95th percentile"
    if most <= LATE_S:
        return Diagnosis("short sleeps", "ok", found)
    return Diagnosis("short sleeps", "advice", found, "free a core: a process that wakes up has to wait for one")


def _nap() -> float:
    start = time.monotonic()
    time.sleep(NAP_S)
    return time.monotonic() - start


def python_build() -> Diagnosis:
    """Debug builds and unoptimised ones are slower, by two times and more."""
    found = f"{sys.implementation.name} {sys.version.split()[0]}"
    problems = list(_python_problems())
    if not problems:
        return Diagnosis("Python", "ok", found)
    return Diagnosis(
        "Python", "advice", f"{found}, {', '.join(problems)}", "use an optimised release build and no tracing"
    )


def _python_problems() -> Iterator[str]:
    if sysconfig.get_config_var("Py_DEBUG"):
        yield "a debug build"
    if "--enable-optimizations" not in (sysconfig.get_config_var("CONFIG_ARGS") or "--enable-optimizations"):
        yield "built without --enable-optimizations"
    if sys.flags.dev_mode:
        yield "in development mode"
    if sys.gettrace() is not None:
        yield "traced by a debugger or for coverage"


def mpi() -> Diagnosis:
    """Which MPI library mpi4py finds, if any, without starting it."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except ModuleNotFoundError:
        return Diagnosis("MPI", "unknown", "mpi4py is not installed")
    except (ImportError, RuntimeError) as problem:
        cure = "install an MPI library, such as the wheel mpich or the distribution's openmpi-bin"
        return Diagnosis("MPI", "advice", f"mpi4py finds no library: {one_line(problem)}", cure)
    name = " ".join(MPI.Get_library_version().partition("\n")[0].partition(",")[0].rstrip("\0").split())
    if name.startswith("Open MPI"):
        return Diagnosis("MPI", "advice", name, "with more ranks than cores: mpirun --oversubscribe")
    return Diagnosis("MPI", "ok", name)


def shared_memory(root: Path, ranks: int) -> Diagnosis:
    """What MPI's processes on one host exchange messages in: too little of it kills them with a bus error."""
    try:
        system = os.statvfs(root / "dev/shm")
    except (OSError, AttributeError):
        return Diagnosis("shared memory", "unknown", "no /dev/shm")
    size = system.f_blocks * system.f_frsize
    found = f"{units.size(size)} in /dev/shm"
    if size >= SHARED_PER_RANK * ranks:
        return Diagnosis("shared memory", "ok", found)
    cure = "for MPI: mount -o remount,size=256m /dev/shm, or start the container with --shm-size=256m"
    return Diagnosis("shared memory", "advice", found, cure)


def model_cache() -> Diagnosis:
    """Models that were exported, grown or cut into stages, and are kept for the next time."""
    found = f"{units.size(cache_size())} of at most {units.size(cache_limit())} in {cache_root()}"
    return Diagnosis("model cache", "ok", found)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
