"""`pipeinfer serve`: an endpoint that answers many requests on one pipeline of ranks."""

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pipeinfer.commands.generate import StrategyOptions
from pipeinfer.commands.options import ClusterOptions, option, with_options

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
        bool, option(SERVER, "When a rank that was started here is lost, start all anew and go on; else requests fail.")
    ] = True


@with_options
def serve(strategy: StrategyOptions, cluster: ClusterOptions, server: ServerOptions) -> None:
    """Answer requests in OpenAI's format over HTTP, with a page at / that shows the pipe at work."""
    try:
        from pipeinfer.serve.server import listen
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        raise ValueError(f"{package} is missing, which serving takes: pip install 'pipeinfer[serve]'") from None
    import msgspec

    from pipeinfer.cluster.launch import Cluster
    from pipeinfer.commands.view import starting

    settings = cluster.settings()
    plan = settings.plan(*settings.settle(), drafts=strategy.needs_draft_model(strategy.open()))
    plan = msgspec.structs.replace(plan, cells=plan.cells or SERVED_CELLS)
    with listen(server.host, server.port, server.api_key) as opened:
        with starting():
            ranks = Cluster(plan)
        with ranks:
            _serve(ranks, strategy, server, opened)


def _serve(ranks: "Cluster", strategy: StrategyOptions, server: ServerOptions, opened: "socket.socket") -> None:
    """Until the process is told to end."""
    from pipeinfer.serve.handlers import Handlers
    from pipeinfer.serve.pipe_events import PipeEvents
    from pipeinfer.serve.server import Server, url
    from pipeinfer.serve.service import Service

    pipe = PipeEvents()
    with Service(
        ranks, waiting=server.waiting, observe=pipe.record, strategy=strategy.strategy, recovers=server.recover,
        **strategy.for_cluster(),
    ) as service:
        handlers = Handlers(service, served_model(ranks), pipe, len(ranks.models.split))
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
