"""What memory is free: of the host, or of the control groups around the process."""

import os
from pathlib import Path

from pipeinfer.cluster.memory import free_bytes
from pipeinfer.runtime.processor_quota import usable_cores

HOST_KB = 8_000_000


def write(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def host(root: Path) -> Path:
    write(root, "proc/meminfo", f"MemTotal: 16000000 kB\nMemFree:  10 kB\nMemAvailable:    {HOST_KB} kB")
    return root


def test_what_is_available_on_the_host(tmp_path: Path) -> None:
    assert free_bytes(host(tmp_path)) == HOST_KB * 1024


def test_a_container_s_limit(tmp_path: Path) -> None:
    host(tmp_path)
    write(tmp_path, "proc/self/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/memory.max", 3_000_000)
    write(tmp_path, "sys/fs/cgroup/memory.current", 1_200_000)
    write(tmp_path, "sys/fs/cgroup/memory.stat", "anon 700000\ninactive_file 200000\nactive_file 1")
    assert free_bytes(tmp_path) == 2_000_000


def test_the_tightest_of_the_groups_around_it(tmp_path: Path) -> None:
    host(tmp_path)
    write(tmp_path, "proc/self/cgroup", "1:cpu:/x\n0::/job/step")
    write(tmp_path, "sys/fs/cgroup/job/step/memory.max", "max")
    write(tmp_path, "sys/fs/cgroup/job/step/memory.current", 5)
    write(tmp_path, "sys/fs/cgroup/job/memory.max", 1_000_000)
    write(tmp_path, "sys/fs/cgroup/job/memory.current", 1_500_000)
    assert free_bytes(tmp_path) == 0


def test_a_group_s_name_may_be_no_text(tmp_path: Path) -> None:
    host(tmp_path)
    group = os.fsdecode(b"job caf\xe9: [1]")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_bytes(b"0::/" + os.fsencode(group) + b"\n")
    write(tmp_path, f"sys/fs/cgroup/{group}/memory.max", 700)
    write(tmp_path, f"sys/fs/cgroup/{group}/memory.current", 200)
    write(tmp_path, f"sys/fs/cgroup/{group}/cpu.max", "50000 100000")
    assert free_bytes(tmp_path) == 500
    assert usable_cores(tmp_path) == 0.5


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 1 << 20


def test_this_system() -> None:
    assert free_bytes() > 1 << 20
