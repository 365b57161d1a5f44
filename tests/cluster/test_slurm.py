"""Ranks under Slurm, on a cluster of one node that is made here, on loopback, and ended by process id.

Needs Slurm's programs (Debian: slurm-wlm), with auth/none, and no rights.
"""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.mpi_world import LAUNCHERS, SRUN_MPI
from pipeinfer.core.strategies.iterative import Iterative

pytestmark = pytest.mark.timeout(120)

UP_S = 20.0
END_S = 40.0
TOKENS = 24
PROMPT = "def read_lines(path):\n"
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
DOCS = Path(__file__).parents[2] / "docs" / "clusters.md"

CONFIGURATION = """
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SwitchType=switch/none
MpiDefault=none
NodeName=localhost NodeAddr=127.0.0.1 CPUs=16
PartitionName=all Nodes=localhost Default=YES
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command in a folder of a user of the cluster. Skips where no cluster can be had."""
    programs = {name: shutil.which(name, path=SBIN) for name in ("slurmctld", "slurmd", "srun", "sbatch")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {missing[0]}")
    folder = tmp_path_factory.mktemp("slurm")
    environment = configure(folder)
    with ExitStack() as stack:
        stack.callback(end_all, f"SLURM_CONF={folder}/slurm.conf")
        for daemon in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]):
            command = [str(programs[daemon[0]]), *daemon[1:]]
            log = stack.enter_context((folder / f"{daemon[0]}.out").open("w"))
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(end, process)
        wait_until_up(folder, environment)

        def run(*command: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                command, cwd=folder, env=environment, text=True, capture_output=True, timeout=END_S, check=False
            )

        yield run


def configure(folder: Path) -> dict[str, str]:
    """Writes the cluster's configuration, and gives the environment of its daemons and users."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    ports = free_ports(2)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(user=getpass.getuser(), folder=folder, ports=ports))
    program = folder / "bin" / "pipeinfer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeinfer "$@"\n')
    program.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMI"))}
    path = f"{program.parent}:{SBIN}"
    return {**inherited, "PATH": path, "SLURM_CONF": f"{folder}/slurm.conf", "PYTHONPATH": os.pathsep.join(sys.path)}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until_up(folder: Path, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + UP_S
    while True:
        found = subprocess.run(
            ["sinfo", "-h", "-o", "%t"], env=environment, text=True, capture_output=True, timeout=UP_S, check=False
        )
        if found.stdout.strip() == "idle":
            return
        if time.monotonic() > deadline:
            said = [line for log in sorted(folder.glob("*.log")) for line in log.read_text().splitlines()[-1:]]
            pytest.skip(f"no Slurm cluster comes up here: {said or found.stderr}")
        time.sleep(0.2)


def end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def end_all(mark: str) -> None:
    """Steps are no children of ours: they are known by the cluster's name in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue  # It has ended, or is another user's.


@pytest.fixture(scope="module")
def mpich() -> None:
    """mpi4py loads MPICH. The PMIx of Slurm and of Open MPI have to fit each other, of which nothing can be known."""
    mpi = pytest.importorskip("pipeinfer.runtime.transports.mpi", reason="mpi4py is not installed")
    if mpi.library().get_vendor()[0] != "MPICH":
        pytest.skip("mpi4py does not load MPICH")


@pytest.fixture(scope="module")
def expected() -> list[int]:
    with Cluster(transport="inproc", stages=1, draft=None) as cluster:
        prompt = cluster.tokenizer.encode(PROMPT)
        return list(cluster.generate(prompt, Iterative(), max_tokens=TOKENS).token_ids)


GENERATE = ["pipeinfer", "generate", PROMPT, "--tokens", str(TOKENS), "--json"]


@pytest.mark.usefixtures("mpich")
def test_srun_starts_a_world(slurm: Run, expected: list[int]) -> None:
    done = slurm("srun", f"--mpi={SRUN_MPI['MPICH']}", "-n", "5", *GENERATE)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["token_ids"] == expected
    assert len(re.findall(r"^rank \d", done.stderr, re.MULTILINE)) == 4


@pytest.mark.usefixtures("mpich")
def test_srun_without_the_library_s_pmi_is_one_line(slurm: Run) -> None:
    done = slurm("srun", "--mpi=none", "-n", "5", *GENERATE)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = re.findall("^error: .*", done.stderr, re.MULTILINE)
    assert "use `srun --mpi=pmi2` or MPICH's own mpirun" in line


@pytest.mark.usefixtures("mpich")
@pytest.mark.parametrize("way", ["none", "pmi2"])
def test_a_world_of_its_own_in_one_task(slurm: Run, expected: list[int], way: str) -> None:
    done = slurm("srun", f"--mpi={way}", "-n", "1", *GENERATE, "--launcher", "mpi", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["token_ids"] == expected


def test_the_documented_batch_script_of_tcp_workers(slurm: Run, tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (script,) = [block for block in blocks if "pipeinfer worker" in block]
    (tmp_path / "job.sh").write_text(script)
    done = slurm("sbatch", "--wait", "--chdir", str(tmp_path), "--output", str(tmp_path / "said"), f"{tmp_path}/job.sh")
    assert done.returncode == 0, done.stderr + (tmp_path / "said").read_text()
    trial = msgspec.json.decode((tmp_path / "trial.json").read_bytes())
    assert len(trial["token_ids"]) == 32
    assert list(tmp_path.glob("*.key")) == []


def test_what_srun_tells_a_task_is_what_a_rank_looks_for(slurm: Run) -> None:
    names = dict(LAUNCHERS)
    done = slurm("srun", "--mpi=none", "-n", "3", "sh", "-c", f"echo $SLURM_PROCID ${names['SLURM_PROCID']}")
    assert sorted(done.stdout.splitlines()) == ["0 3", "1 3", "2 3"]
