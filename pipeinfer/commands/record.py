"""`pipeinfer record`: how often a draft is right, position by position, for the simulator to play back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeinfer.engine.backend import Backend, ModelStage


def record(
    out: Annotated[Path, typer.Option(help="The trace, as JSON.")] = Path("trace.json"),
    backend: Annotated[str, typer.Option(help="Who computes.")] = "numpy",
    target: Annotated[str, typer.Option(help="The target model.")] = "builtin:target",
    draft: Annotated[str, typer.Option(help="The draft model.")] = "builtin:draft",
    prompts: Annotated[int, typer.Option(help="How many of the suite's prompts.", min=1, max=20)] = 20,
    tokens: Annotated[int, typer.Option(help="Tokens after each prompt.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample within this probability mass.", min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(help="As in generate.", min=0)] = 0,
) -> None:
    """Let the target write, and note where its tokens stand among the draft's candidates."""
    import msgspec
    from rich.progress import Progress

    from pipeinfer.cluster.launch import Models, Plan
    from pipeinfer.core.messages import Sampling
    from pipeinfer.modelling.trace_recording import record as run
    from pipeinfer.plugins import open_backend
    from pipeinfer.workload import prompts as read_prompts

    Models(Plan(backend=backend, target=target, draft=draft, stages=1))  # whether they go together
    engine = open_backend(backend, {})
    speaker, guesser = (_whole(engine, model) for model in (target, draft))
    encode = engine.tokenizer(target).encode
    texts = [encode(text) for text in read_prompts()[:prompts]]
    out.touch()
    source = (
        f"{target} + {draft}, {backend}, {prompts} prompts, {tokens} tokens each, T = {temperature:g}, "
        f"top-p {top_p:g}, seed {seed}"
    )
    with Progress(transient=True) as progress:
        task = progress.add_task("recording", total=len(texts))
        trace = run(speaker, guesser, texts, tokens, Sampling(temperature, 0, top_p, seed), source=source,
                    done=lambda: progress.advance(task))  # fmt: skip
    out.write_bytes(msgspec.json.encode(trace))
    print(f"{out}: {len(trace.ranks)} tokens, the draft's first candidate right for {trace.acceptance:.1%}")


def _whole(engine: "Backend", model: str) -> "ModelStage":
    info = engine.info(model)
    return engine.load(model, (0, info.layers), cells=info.context, sequences=1)
