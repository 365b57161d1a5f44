"""`pipeinfer serve`: an endpoint that answers many requests on one pipeline of ranks."""

import dataclasses
import logging
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipeinfer.commands.generate import EventFile, StrategyOptions, print_who
from pipeinfer.commands.options import OUTPUT, ClusterOptions, option, path_option, with_options

if TYPE_CHECKING:
    import socket

    from pipeinfer.cluster.launch import Cluster
    from pipeinfer.serve.prompts import ServedModel

SERVER = "Server"

SERVED_CELLS = 8192
"""Tokens of all requests together, unless --cells says."""


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Where clients find it, and how many may wait."""

    host: Annotated[str, option(SERVER, "Where to listen; default: 127.0.0.1, this machine alone.")] = "127.0.0.1"
    port: Annotated[int, option(SERVER, "Default: 8000; 0 takes a free one.", min=0, max=65535)] = 8000
    api_key: Annotated[
        str | None, option(SERVER, "What clients must show, if others reach it.", envvar="PIPEINFER_API_KEY")
    ] = None
    waiting: Annotated[int, option(SERVER, "Requests that may wait; default: 64.", min=0)] = 64
    recover: Annotated[
        bool | None, option(SERVER, "When a rank is lost, have another in its place and go on; else requests fail.")
    ] = None
    spares: Annotated[str | None, option(SERVER, "Addresses of further workers, to take such places.")] = None
    log: Annotated[Path | None, path_option(OUTPUT, "Write the head's events, for `pipeinfer replay`.")] = None


@with_options
def serve(strategy: StrategyOptions, cluster: ClusterOptions, server: ServerOptions) -> None:
    """Answer requests in OpenAI's format over HTTP, with a page at / that shows the pipe at work."""
    try:
        from pipeinfer.serve.server import listen
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        raise ValueError(f"{package} is missing, which serving takes: pip install 'pipeinfer[serve]'") from None
    logging.basicConfig(format="%(asctime)s %(message)s")
    settings = cluster.settings()
    server = with_filed(server, cluster.filed())
    transport, nodes = settings.settle()  # From here on one alone of a world's processes goes on.
    import msgspec

    from pipeinfer.cluster.launch import Cluster
    from pipeinfer.cluster.mpi_world import in_mpi_world
    from pipeinfer.commands.view import starting

    plan = settings.plan(transport, nodes, drafts=strategy.needs_draft_model(strategy.open()))
    plan = msgspec.structs.replace(plan, cells=plan.cells or SERVED_CELLS, spares=_spares(server, plan.workers))
    with (
        listen(server.host, server.port, server.api_key) as opened,
        closing(EventFile(server.log)) if server.log is not None else nullcontext() as log,
    ):
        with starting():
            ranks = Cluster(plan)
        with ranks:
            print_who(ranks, layout=in_mpi_world())
            _serve(ranks, strategy, server, opened, log)


def with_filed(server: ServerOptions, filed: dict[str, Any]) -> ServerOptions:
    """The options, and what was not given as the cluster file has it; it names no spares for who wants none to be
    used."""
    recover = filed.get("recover", True) if server.recover is None else server.recover
    spares = server.spares
    if spares is None and "spares" in filed and server.recover is not False:
        spares = ",".join(filed["spares"]) or None
    return dataclasses.replace(server, recover=recover, spares=spares)


def _spares(server: ServerOptions, workers: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ValueError where nobody's place can be taken, or not by these."""
    if server.spares is None:
        return ()
    if not workers or not server.recover:
        raise ValueError("--spares take the places of lost --workers: give those, without --no-recover")
    from pipeinfer.runtime.transports import scheme_of

    spares = tuple([address.strip() for address in server.spares.split(",")])
    named = [*map(str.strip, workers), *spares]
    if again := next((address for at, address in enumerate(named) if address in named[:at]), ""):
        raise ValueError(f'--workers and --spares name each worker once, and "{again}" twice')
    scheme = scheme_of(workers[0])
    if other := [spare for spare in spares if scheme and scheme_of(spare) != scheme]:
        expected = f"one like {scheme}://10.0.0.7:5555"
        raise ValueError(f'--spares are of the transport of --workers: {expected}, not "{other[0]}"')
    return spares


def _serve(
    ranks: "Cluster",
    strategy: StrategyOptions,
    server: ServerOptions,
    opened: "socket.socket",
    log: EventFile | None,
) -> None:
    """Until the process is told to end."""
    from pipeinfer.serve.handlers import Handlers
    from pipeinfer.serve.pipe_events import PipeEvents
    from pipeinfer.serve.server import Server, url
    from pipeinfer.serve.service import Service

    pipe = PipeEvents()
    with Service(
        ranks, waiting=server.waiting, observe=pipe.record, open_log=log.open if log is not None else None,
        strategy=strategy.strategy, recovers=bool(server.recover), **strategy.for_cluster(),
    ) as service:
        handlers = Handlers(service, served_model(ranks), pipe)
        said = f"serving {handlers.model.name} at {url(opened)}"
        with suppress(KeyboardInterrupt):  # which is how one ends it
            Server(handlers, key=server.api_key, started=lambda: print(said, flush=True)).run([opened])


def served_model(ranks: "Cluster") -> "ServedModel":
    """The target as clients see it. Of a file they hear the name, not where it lies."""
    from pipeinfer.serve.prompts import ServedModel

    target, name = ranks.models.target, ranks.plan.target
    return ServedModel(
        Path(name).name if Path(name).exists() else name, ranks.tokenizer, ranks.tokenizer.chat_template(),
        min(target.context, ranks.models.cells), target.vocabulary, tuple(target.eos),
    )  # fmt: skip
