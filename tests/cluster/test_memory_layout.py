"""Ranks that share cores have their memory at the same addresses, and nobody else has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import rank_on_the_core_of_its_head

from pipeinfer.cluster.memory_layout import same_memory_layout

NOT_RANDOM = 0x0040000


def personality() -> int:
    """Of a process that is started now."""
    code = "print(open('/proc/self/personality').read())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout, 16)


def test_only_what_is_started_meanwhile_has_it() -> None:
    if not Path("/proc/self/personality").exists():
        pytest.skip("this system has no personalities, or does not tell them")
    before = personality()
    with same_memory_layout():
        meanwhile = personality()
    if meanwhile == before and not before & NOT_RANDOM:
        pytest.skip("this system refuses it, as some containers do")
    assert meanwhile == before | NOT_RANDOM
    assert personality() == before


@pytest.mark.usefixtures("own_parents_of_ranks")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds nobody to cores")
def test_ranks_that_share_a_core_with_the_head_have_it() -> None:
    with same_memory_layout():
        expected = personality()
    with rank_on_the_core_of_its_head() as pid:
        assert int(Path(f"/proc/{pid}/personality").read_text(), 16) == expected
