"""The doctor names what would disturb a measurement, and a cure for each."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeinfer.cluster import doctor
from pipeinfer.commands.doctor import doctor as command

CPU0 = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


def write(root: Path, path: str, content: str) -> Path:
    """A root with that file in it."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)
    return root


def test_every_finding_that_is_not_in_order_has_a_cure() -> None:
    findings = doctor.examine(ranks=64)
    assert len({finding.what for finding in findings}) == len(findings)
    assert all(bool(finding.cure) == (finding.state == "advice") for finding in findings)
    assert {"load", "cores", "threads", "CPU governor", "clock", "MPI"} <= {finding.what for finding in findings}


def test_a_machine_that_shows_nothing_is_examined_all_the_same(tmp_path: Path) -> None:
    states = {finding.what: finding.state for finding in doctor.examine(1, tmp_path, {})}
    assert states["load"] == states["CPU governor"] == states["swap"] == states["stolen time"] == "unknown"
    assert states["CPU limit"] == "ok"


@pytest.mark.parametrize(("average", "state"), [("0.10", "ok"), ("3.00", "advice")])
def test_load(tmp_path: Path, average: str, state: str) -> None:
    assert doctor.load(write(tmp_path, "proc/loadavg", f"{average} 1 1 2/3 4"), cores=4).state == state


@pytest.mark.parametrize(("ranks", "state"), [(3, "ok"), (4, "advice")])
def test_the_head_needs_a_core_too(ranks: int, state: str) -> None:
    assert doctor.cores_for_ranks(4, ranks).state == state


def test_a_quota_below_the_cores_is_named(tmp_path: Path) -> None:
    assert doctor.cpu_limit(write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000"), 8).state == "ok"
    finding = doctor.cpu_limit(write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000"), 8)
    assert (finding.state, finding.found) == ("advice", "1.5 cores' worth of time in every period")


def test_the_quota_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000")
    assert doctor.cpu_limit(write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"), 8).found.startswith("2 ")


def test_threads_must_not_outnumber_the_cores() -> None:
    assert doctor.threads(dict.fromkeys(doctor.THREADS, "2"), cores=8, ranks=4).state == "ok"
    assert doctor.threads(dict.fromkeys(doctor.THREADS, "1"), cores=2, ranks=4).state == "ok"
    finding = doctor.threads({"OMP_NUM_THREADS": "1"}, cores=8, ranks=4)
    assert finding.cure == "export OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 MKL_NUM_THREADS=2"


@pytest.mark.parametrize(("name", "state"), [("performance", "ok"), ("powersave", "advice")])
def test_governor(tmp_path: Path, name: str, state: str) -> None:
    assert doctor.governor(write(tmp_path, CPU0, f"{name}\n")).state == state


def test_swap_and_stolen_time(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: 1024 kB\nSwapTotal: 4096 kB\nSwapFree: 2048 kB\n")
    write(tmp_path, "proc/stat", "cpu 80 0 10 0 0 0 0 10 0 0\ncpu0 1 1 1 1\n")
    assert doctor.swap(tmp_path).found == "2 MiB in use"
    assert doctor.stolen_time(tmp_path).found == "10.0% since boot"


@pytest.mark.parametrize(("source", "state"), [("tsc", "ok"), ("hpet", "advice")])
def test_clock(tmp_path: Path, source: str, state: str) -> None:
    path = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert doctor.clock(write(tmp_path, path, source)).state == state


def test_the_command_ends_well_whatever_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer.cluster.engines.names", lambda _group: ["numpy"])
    app = typer.Typer()
    app.command()(command)
    table = CliRunner().invoke(app, [], catch_exceptions=False).stdout
    assert "cure" in table
    assert "engine numpy" in table
    result = CliRunner().invoke(app, ["--nodes", "64", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    assert {"what", "state", "found", "cure"} == set(json.loads(result.stdout)[0])


def test_a_kernel_that_groups_by_session_makes_nice_idle(tmp_path: Path) -> None:
    assert doctor.session_groups(tmp_path).state == "ok"
    flag = "proc/sys/kernel/sched_autogroup_enabled"
    assert doctor.session_groups(write(tmp_path, flag, "0\n")).state == "ok"
    finding = doctor.session_groups(write(tmp_path, flag, "1\n"))
    assert (finding.state, "autogroup" in finding.cure) == ("advice", True)
