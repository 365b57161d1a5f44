"""A cluster of Slurm of one node, on loopback, for tests; ended by process id.

Needs Slurm's programs (Debian: slurm-wlm), with auth/none, and no rights.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

UP_S = 20.0
END_S = 100.0
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"

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


@contextmanager
def one_node_of_slurm(folder: Path) -> Iterator[Run]:
    """Runs a command in a folder of a user of the cluster. Skips where no cluster can be had."""
    programs = {name: shutil.which(name, path=SBIN) for name in ("slurmctld", "slurmd", "srun", "sbatch")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {missing[0]}")
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
