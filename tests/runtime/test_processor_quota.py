"""What a process may use of the processors, in control groups of both versions."""

import os

import pytest

from pipeinfer.runtime.processor_quota import SPIN_S, spinning_s, usable_cores

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def system(root, groups, files):
    """A root with these lines in /proc/self/cgroup and these files of groups."""
    for name, text in {"../../../proc/self/cgroup": groups, **files}.items():
        path = root / "sys/fs/cgroup" / name
        (root / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "45000 100000\n", "a/cpu.max": "max 100000\n"}, 0.45),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "20000 100000\n"}, 0.2),
        ("0::/\n", {"cpu.max": "30000 100000\n"}, 0.3),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "25000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 0.25),
        ("3:cpu:/a\n0::/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, BOUND),
        ("0::/a\n", {"a/cpu.max": "800000000 100000\n"}, BOUND),
        ("7:cpuset:/a\n0::/a\n", {"cpuset/a/cpu.cfs_quota_us": "1\n"}, BOUND),
        ("", {}, BOUND),
    ],
)
def test_the_tightest_of_the_groups_counts(tmp_path, groups, files, cores):
    assert usable_cores(system(tmp_path, groups, files)) == cores


def test_under_a_quota_of_a_core_or_less_nobody_spins(tmp_path):
    assert spinning_s(system(tmp_path, "0::/\n", {"cpu.max": "100000 100000\n"})) == 0
    assert spinning_s(tmp_path / "none") == (SPIN_S if BOUND > 1 else 0)
