"""Nodes of less than a core, made of control groups: what holds in them, and that none is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeinfer.cluster.control_groups import limited_nodes, move
from pipeinfer.errors import LaunchError
from pipeinfer.files import system_text
from pipeinfer.runtime.processor_quota import processor_groups

CORES = 0.25
USABLE = "input(); from pipeinfer.runtime.processor_quota import usable_cores; print(usable_cores())"


def permitted() -> str:
    """Why there can be no such nodes here; nothing where there can."""
    try:
        with limited_nodes(1, CORES):
            return ""
    except LaunchError as problem:
        return str(problem)


WHY_NOT = permitted()
here = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@here
def test_a_process_on_a_node_has_its_cores_and_the_node_is_removed() -> None:
    with limited_nodes(2, CORES) as nodes:
        process = subprocess.Popen([sys.executable, "-c", USABLE], stdin=-1, stdout=-1, text=True)
        move(process.pid, nodes[1])
        assert float(process.communicate("\n")[0]) == CORES
    assert not any(map(Path.is_dir, nodes))


@here
def test_who_is_left_on_a_node_goes_back() -> None:
    own = system_text(Path("/proc/self/cgroup"))
    with limited_nodes(1, CORES) as nodes:
        move(os.getpid(), nodes[0])
        assert system_text(Path("/proc/self/cgroup")) != own
    assert system_text(Path("/proc/self/cgroup")) == own


@here
def test_nodes_that_are_made_from_a_node_are_beside_it() -> None:
    """llama.cpp's are made while this process is on one of ours: in that they would share its cores."""
    with limited_nodes(1, CORES) as outer:
        move(os.getpid(), outer[0])
        with limited_nodes(2, 4 * CORES) as inner:
            assert {node.parent for node in inner} == {outer[0].parent}
            assert len({*inner, *outer}) == 3
            process = subprocess.Popen([sys.executable, "-c", USABLE], stdin=-1, stdout=-1, text=True)
            move(process.pid, inner[0])
            assert float(process.communicate("\n")[0]) == 4 * CORES


@here
def test_who_comes_and_goes_while_the_nodes_are_removed_is_no_hindrance() -> None:
    parents = [subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"]) for _ in range(4)]
    try:
        with limited_nodes(4, CORES) as nodes:
            for process, node in zip(parents, nodes, strict=True):
                move(process.pid, node)
            time.sleep(0.2)
    finally:
        for process in parents:
            process.kill()
            process.wait()
    assert not any(map(Path.is_dir, nodes))


def test_where_there_are_no_control_groups_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="which this system does not have"), limited_nodes(1, CORES, tmp_path):
        pass


def test_where_none_can_be_made_it_says_who_may(tmp_path: Path) -> None:
    told(tmp_path, "1:cpu:/\n")
    with pytest.raises(LaunchError, match="and a user who may, such as root"), limited_nodes(1, CORES, tmp_path):
        pass


def test_of_version_2_the_nearest_group_that_gives_the_controller_has_them(tmp_path: Path) -> None:
    told(tmp_path, "0::/a/b\n")
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/a/cgroup.subtree_control").write_text("memory cpu\n")
    (group,) = processor_groups(tmp_path)
    assert group.parent_of_limited == tmp_path / "sys/fs/cgroup/a"


def test_a_group_of_somebody_who_is_called_alike_is_no_node(tmp_path: Path) -> None:
    told(tmp_path, "1:cpu:/pipeinfer-serve\n")
    with pytest.raises(LaunchError, match=r"can be made in .*/pipeinfer-serve "), limited_nodes(1, CORES, tmp_path):
        pass


def told(root: Path, groups: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
