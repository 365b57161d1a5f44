"""llama.cpp's own cluster beside ours: its RPC servers as the nodes, one for each of our target's ranks, and its own
programs, which decode plainly or speculate over them. They are read from outside as the authors' programs are."""

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from pipeinfer.cluster.control_groups import limited_nodes, move
from pipeinfer.errors import LaunchError
from pipeinfer.study.artifact import LAST, SILENCE_S, find_program, with_gguf
from pipeinfer.study.external_program import ProgramRun, joined, run_program
from pipeinfer.study.points import ProgramCell
from pipeinfer.study.recipes import LLAMA_CPP, PEER_SERVER, PEERS_DRAFT, Artifact, Recipe
from pipeinfer.workload import WorkloadError

CONTEXT = 1024
"""Cells of the target and the draft: one call reads a prompt of the suite and writes what a recipe wants."""

START_S = 10.0
"""How long a server may take until it listens."""

ATTEMPTS = 3
"""llama.cpp writes from a thread, and now and then has ended well before that had written the last lines."""


def with_peers(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with llama.cpp's programs in `folder`, and with GGUF files that both sides read. Raises WorkloadError
    or BadModel."""
    assert recipe.live is not None
    for program in (PEER_SERVER, *{one.program for one in recipe.strategies.values() if one.program}):
        find_program(folder, program, LLAMA_CPP)
    if recipe.live.node_cores is not None:
        _check_nodes(recipe.live.node_cores)
    return msgspec.structs.replace(recipe, live=with_gguf(recipe.live), artifact=Artifact(folder, launcher=""))


def _check_nodes(cores: float) -> None:
    """Raise WorkloadError where there can be no such nodes: better before the sweep than in its middle."""
    try:
        with limited_nodes(1, cores):
            pass
    except LaunchError as problem:
        raise WorkloadError(str(problem)) from problem


def command(cell: ProgramCell, nodes: list[str], prompt: Path) -> list[str]:
    """The command line of a cell: the target on the servers, in equal parts, the draft with the program itself."""
    threads = str(cell.live.backend_options.get("threads", 1))
    devices = ",".join(f"RPC{place}" for place in range(len(nodes)))
    drafts = ["-md", cell.live.draft, "-devd", "none", "-td", threads] if cell.program == PEERS_DRAFT else []
    return [
        str(find_program(cell.artifact.folder, cell.program, LLAMA_CPP)),
        "-m", cell.live.target, "--rpc", ",".join(nodes), "-ngl", "99", "-dev", devices, *drafts,
        "-f", str(prompt), "-n", str(cell.live.tokens), "-c", str(CONTEXT), "-t", threads,
        "--temp", "0", "--ignore-eos", *cell.words,
    ]  # fmt: skip


@contextmanager
def servers(folder: str, count: int, threads: int, nodes: Sequence[Path] = ()) -> Iterator[dict[str, int]]:
    """That many servers on loopback: their process ids by their addresses; none is left. Each is put on a node of its
    own, where there are some. Raises WorkloadError."""
    program = str(find_program(folder, PEER_SERVER, LLAMA_CPP))
    found = {}
    with ExitStack() as stack:
        for number in range(count):
            port = _free_port()
            process = subprocess.Popen(
                [program, "-H", "127.0.0.1", "-p", str(port), "-t", str(threads)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            for node in nodes[number : number + 1]:
                move(process.pid, node)
            _wait_for(process, port)
            found[f"127.0.0.1:{port}"] = process.pid
        yield found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), START_S).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise WorkloadError(f"{PEER_SERVER} does not listen on port {port}: start it by hand to see why")


def generate(cell: ProgramCell, prompt: Path, silence_s: float = SILENCE_S) -> ProgramRun:
    """What a program of llama.cpp's writes, over servers of its own."""
    for _ in range(ATTEMPTS):
        found = _attempt(cell, prompt, silence_s)
        if found.code != 0 or LAST.search(joined(found.err)):
            break
    return found


def _attempt(cell: ProgramCell, prompt: Path, silence_s: float) -> ProgramRun:
    """On limited nodes it has the last one: that of the draft."""
    live = cell.live
    with ExitStack() as stack:
        nodes = stack.enter_context(limited_nodes(live.stages + 1, live.node_cores)) if live.node_cores else []
        threads = int(live.backend_options.get("threads", 1))
        there = stack.enter_context(servers(cell.artifact.folder, live.stages, threads, nodes))
        line = command(cell, list(there), prompt)
        return run_program(line, prompt.parent, silence_s=silence_s, last=LAST, beside=list(there.values()),
                           node=nodes[-1] if nodes else None)  # fmt: skip
