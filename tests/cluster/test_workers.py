"""`pipeinfer worker` between sessions: whatever ended one, the next head finds it ready, and nothing is left of it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Timer

import pytest
from processes import EMULATED as SLOW
from processes import PROMPT, start
from running_workers import EMULATED, Workers, running, wait_until

from pipeinfer.cluster.launch import Cluster
from pipeinfer.errors import LaunchError, RankLost
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime import control
from pipeinfer.runtime.control import AskReport, Begin, Inspect
from pipeinfer.runtime.transports import HEAD
from pipeinfer.runtime.transports.tcp import TcpTransport

pytestmark = pytest.mark.timeout(120)

WITHIN_S = 40.0

SLOW_TO_LEAVE = """
import sys, time
if "worker" in sys.argv:
    from pipeinfer.runtime.transports import tcp
    close = tcp.TcpTransport.close
    def slowly(self):
        time.sleep(0.6)
        close(self)
    tcp.TcpTransport.close = slowly
"""


def generate(cluster: Cluster, tokens: int = 8) -> tuple[int, ...]:
    return cluster.generate([1, 2], open_strategy("pipeinfer", {}), max_tokens=tokens).token_ids


def test_a_worker_that_is_still_leaving_one_session_serves_the_next(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_LEAVE)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with running(tmp_path, PYTHONPATH=path) as workers:
        said = set()
        for _ in range(3):
            with Cluster(workers.plan()) as cluster:
                said.add(generate(cluster))
    assert len(said) == 1


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Running workers, for one test after another."""
    with running(tmp_path_factory.mktemp("workers")) as found:
        yield found


def command(workers: Workers, addresses: str) -> tuple[int, str, str]:
    """`pipeinfer generate --workers ADDRESSES`: exit code, text and errors."""
    options = [option for name, value in EMULATED.items() for option in ("--backend-option", f"{name}={value}")]
    process = start("generate", "1 2", "--backend", "emulated", *options, "--tokens", "4", "--workers", addresses,
                    "--key", str(workers.key))  # fmt: skip
    text, errors = process.communicate(timeout=30)
    return process.returncode, text, errors


def test_spaces_between_addresses_are_no_part_of_them(workers: Workers) -> None:
    code, text, errors = command(workers, " {} ,  {} ".format(*workers.addresses))
    assert (code, len(text.split())) == (0, 4), errors


@pytest.mark.parametrize(
    ("slip", "line"),
    [
        ("{}/", "is not a TCP address; expected one like"),
        ("tcp://user@127.0.0.1:9", "is not a TCP address; expected one like"),
        ("tcp://no-such-host.invalid:9", 'no host "no-such-host.invalid" is known here'),
    ],
)
def test_a_slip_in_an_address_is_one_line(workers: Workers, slip: str, line: str) -> None:
    code, text, errors = command(workers, f"{workers.addresses[0]},{slip.format(workers.addresses[1])}")
    assert code == 2
    assert line in errors
    assert len(errors.splitlines()) == 1
    assert not text


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
def test_workers_over_ipv6(tmp_path: Path) -> None:
    with running(tmp_path, "tcp://[::1]:0") as workers:
        assert all(address.startswith("tcp://[::1]:") for address in workers.addresses)
        with Cluster(workers.plan()) as cluster:
            assert cluster.transport.address.startswith("tcp://[::1]:")
            assert len(generate(cluster)) == 8


def test_a_busy_worker_refuses_a_second_head(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer.cluster.remote_workers.AGAIN_S", 0.3)
    with Cluster(workers.plan()) as cluster:
        said = generate(cluster)
        with pytest.raises(LaunchError, match=r"rank \d at .* is busy with another session: it has a head already"):
            Cluster(workers.plan())
        assert generate(cluster) == said


def test_a_second_head_may_wait_for_the_first(workers: Workers) -> None:
    first = Cluster(workers.plan())
    Timer(0.3, first.close).start()
    with Cluster(workers.plan()) as cluster:
        assert generate(cluster)


STRAYS = {
    "of another kind": (3, control.encode(Begin({})), "rank 3 sent Begin, which begins no session"),
    "no message": (3, b"\xff\xff", "rank 3 sent something that is no message: "),
    "not by the head": (1, control.encode(Inspect(0, "numpy", b"", "")), "rank 1 sent Inspect, which begins no"),
    "not for a worker": (HEAD, control.encode(AskReport()), "the head sent AskReport, which begins no session"),
    "no way back": (HEAD, control.encode(Inspect(0, "numpy", b"", "nowhere")), "a head that cannot be answered: "),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_message_costs_a_worker_nothing(workers: Workers, stray: str) -> None:
    sender, header, line = STRAYS[stray]
    before = workers.said(0)
    with closing(TcpTransport("tcp://127.0.0.1:0", sender, keys=workers.key, again_s=10.0)) as member:
        member.connect(0, workers.addresses[0])
        member.send(0, header)
        wait_until(lambda: member.receive(0.01) is None and "ignored: " in workers.said(0).removeprefix(before))
        with Cluster(workers.plan()) as cluster:
            assert generate(cluster)
    said = workers.said(0).removeprefix(before)
    assert f"ignored: {line}" in said
    assert "Traceback" not in said


def test_sessions_leave_no_file_and_no_thread_behind(workers: Workers) -> None:
    for _ in range(5):
        with Cluster(workers.plan()) as cluster:
            generate(cluster, 2)
        with pytest.raises(LaunchError, match="takes this worker for rank"):
            Cluster(workers.plan(workers=tuple(reversed(workers.addresses))))
    wait_until(lambda: workers.held() == workers.held_at_first)


def test_what_a_worker_cannot_do_is_one_line_for_both_sides(workers: Workers) -> None:
    before = workers.said(0)
    for _ in range(2):
        with pytest.raises(LaunchError, match="the head takes this worker for rank"):
            Cluster(workers.plan(workers=tuple(reversed(workers.addresses))))
    line = "session ended: the head takes this worker for rank 1, but it was started as 0: start it without --rank"
    wait_until(lambda: line in workers.said(0).removeprefix(before))


def test_a_worker_of_no_rank_is_the_one_that_the_head_says(tmp_path: Path) -> None:
    with running(tmp_path, fixed=False) as workers:
        said = []
        for addresses in (workers.addresses, workers.addresses[::-1]) * 2:
            with Cluster(workers.plan(workers=tuple(addresses))) as cluster:
                said.append(generate(cluster))
        assert said == [said[0]] * 4
        wait_until(lambda: workers.held() == workers.held_at_first)
        assert [workers.said(rank) for rank in range(2)] == ["", ""]


@pytest.mark.parametrize(("how", "line"), [(signal.SIGKILL, "session ended: the head is gone\n"), (signal.SIGINT, "")])
def test_a_head_that_goes_while_its_workers_compute(workers: Workers, how: signal.Signals, line: str) -> None:
    there = ["--workers", ",".join(workers.addresses), "--key", str(workers.key)]
    before = workers.said(0), workers.said(1)
    for _ in range(2):
        head = start("generate", " ".join(PROMPT), *SLOW, "--tokens", "3000", *there)
        assert head.stdout is not None
        assert head.stdout.read(20)
        head.send_signal(how)
        head.communicate(timeout=60)
        with Cluster(workers.plan()) as cluster:
            assert generate(cluster)
    said = [workers.said(rank).removeprefix(before[rank]) for rank in range(2)]
    assert all(line in each and "Traceback" not in each for each in said)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_session_at_once_and_the_other_serves_on(tmp_path: Path, rank: int) -> None:
    with running(tmp_path) as workers:
        with Cluster(workers.plan()) as cluster:
            said = generate(cluster)
            workers.kill(rank)
            killed = time.monotonic()
            with pytest.raises(RankLost, match=rf"lost rank {rank}: .*{workers.addresses[rank]} is gone"):
                generate(cluster, 3000)
            assert time.monotonic() - killed < WITHIN_S
        workers.start_again(rank)
        with Cluster(workers.plan()) as cluster:
            assert generate(cluster) == said
        assert workers.said(rank) == ""
        assert len(workers.said(1 - rank).splitlines()) <= 1


ABORTS = """
import os
from pipeinfer.engine import last_words
from pipeinfer.runtime import live
def abort(self, work):
    last_words.say("ops.cpp:7: a tensor of no known kind")
    os.abort()
live.StageWorker._compute = abort
"""


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_what_a_library_says_before_it_ends_a_worker_is_told_by_the_head(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(ABORTS)
    with (
        running(tmp_path, f"{scheme}://127.0.0.1:0", PYTHONPATH=str(tmp_path)) as workers,
        Cluster(workers.plan()) as cluster,
        pytest.raises(RankLost, match=r"^lost rank 0: target .*: ops.cpp:7: a tensor of no known kind; its last"),
    ):
        cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=4)
