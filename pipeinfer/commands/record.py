"""`pipeinfer record`: how often a draft is right, position by position, for the simulator to play back."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeinfer.cluster.models import Models
    from pipeinfer.core.messages import Sampling
    from pipeinfer.engine.backend import Backend
    from pipeinfer.runtime.oracle import Trace


def record(
    out: Annotated[Path, typer.Option(help="The trace, as JSON.")] = Path("trace.json"),
    backend: Annotated[str, typer.Option(help="Who computes.")] = "numpy",
    backend_option: Annotated[list[str] | None, typer.Option(help="A backend option, like threads=4.")] = None,
    target: Annotated[str, typer.Option(help="The target model.")] = "builtin:target",
    draft: Annotated[str, typer.Option(help="The draft model.")] = "builtin:draft",
    prompts: Annotated[int, typer.Option(help="How many of the suite's prompts.", min=1, max=20)] = 20,
    tokens: Annotated[int, typer.Option(help="Tokens after each prompt; fewer where the context ends.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample within this probability mass.")] = 1.0,
    seed: Annotated[int, typer.Option(help="As in generate.")] = 0,
    cells: Annotated[int, typer.Option(help="KV cells of each model; 0: as many as the texts take.", min=0)] = 0,
) -> None:
    """Let the target write, and note where its tokens stand among the draft's candidates."""
    import msgspec

    from pipeinfer.cluster.models import Models
    from pipeinfer.cluster.plan import Plan
    from pipeinfer.commands.generate import key_values
    from pipeinfer.core.messages import Sampling
    from pipeinfer.files import check_writable, write_whole
    from pipeinfer.plugins import open_backend
    from pipeinfer.workload import prompts as read_prompts

    sampling = Sampling(temperature, 0, top_p, seed)
    options = key_values(backend_option)
    models = Models(Plan(backend=backend, backend_options=options, target=target, draft=draft, stages=1))
    assert models.draft is not None
    for note in models.notes:
        print(f"note: {note}", file=sys.stderr)
    context = min(models.target.context, models.draft.context)
    engine = open_backend(backend, options)
    encode = engine.tokenizer(target).encode
    texts = [encode(text) for text in read_prompts()[:prompts]]
    check_writable(out)
    trace = _record(engine, models, texts, tokens, sampling, limit=min(context, cells or context),
                    source=f"{target} + {draft}, {backend}, {prompts} prompts, up to {tokens} tokens each, "
                           f"T = {temperature:g}, top-p {top_p:g}, seed {seed}")  # fmt: skip
    write_whole(out, msgspec.json.encode(trace))
    print(f"{out}: {len(trace.ranks)} tokens, the draft's first candidate right for {trace.acceptance:.1%}")
    if short := sum(length < tokens for length in trace.lengths):
        print(f"{short} of {prompts} texts ended before {tokens} tokens, where the models hold no more")


def _record(
    engine: "Backend", models: "Models", texts: "list[Sequence[int]]", tokens: int, sampling: "Sampling",
    *, limit: int, source: str,
) -> "Trace":  # fmt: skip
    """Load both models, as large as the texts become and at most `limit` tokens, and record with a progress bar."""
    from rich.progress import Progress

    from pipeinfer.commands.output import console
    from pipeinfer.modelling.trace_recording import load_whole
    from pipeinfer.modelling.trace_recording import record as run

    limit = min(limit, max(map(len, texts)) + tokens)
    assert models.plan.draft is not None
    target = load_whole(engine, models.plan.target, limit)
    draft = load_whole(engine, models.plan.draft, limit, models.shared_vocabulary)
    terminal = console(errors=True)
    with Progress(transient=True, console=terminal, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("recording", total=len(texts))
        return run(target, draft, texts, tokens, sampling, limit=limit, source=source,
                   done=lambda: progress.advance(task))  # fmt: skip
