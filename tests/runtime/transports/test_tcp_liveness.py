"""A host that falls silent, as the kernel sees it: in a network namespace, whose only network goes down."""

import shutil
import subprocess
import sys

import pytest

ALONE = ["unshare", "--map-root-user", "--net"]

TWO_ENDS = """
import subprocess, sys
from pipeinfer.runtime.transports import PeerLost
from pipeinfer.runtime.transports.keys import Keys
from pipeinfer.runtime.transports.tls import TlsTransport

def network(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

network("up")
keys = Keys.generate()
a, b = [TlsTransport("tls://127.0.0.1:0", rank, keys=keys) for rank in range(2)]
a.connect(1, b.address)
b.connect(0, a.address)
a.send(1, b"hello")
while (heard := b.receive(0.01)) is None:
    a.receive(0.01)
assert a.receive(4.0) is None, "idle is not silent"
network("down")
if sys.argv[1] == "sending":
    a.send(1, b"anyone there?")
try:
    a.receive(20.0)
except PeerLost as lost:
    print(lost)
"""


@pytest.fixture(autouse=True)
def may_be_alone() -> None:
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    done = subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")


@pytest.mark.parametrize("how", ["idle", "sending"])
def test_a_silent_host_is_lost(how: str) -> None:
    done = subprocess.run([*ALONE, sys.executable, "-c", TWO_ENDS, how], capture_output=True, text=True, check=False,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rank 1 at tls://127.0.0.1:"), done.stderr
    assert done.stdout.endswith("silent for 2.5 s\n")
