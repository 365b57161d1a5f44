"""`pipeinfer record`: how often a draft is right, position by position, for the simulator to play back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pipeinfer.commands.options import (
    OUTPUT,
    PIPELINE,
    TEXT,
    ModelOptions,
    SeededSampling,
    option,
    path_option,
    with_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeinfer.cluster.models import Models
    from pipeinfer.engine.backend import Backend
    from pipeinfer.engine.sampling import Sampling
    from pipeinfer.runtime.oracle import Trace


@with_options
def record(
    models: ModelOptions,
    sampling: SeededSampling,
    prompts: Annotated[int, option(TEXT, "How many of the suite's prompts; default: all 20.", min=1, max=20)] = 20,
    tokens: Annotated[int, option(TEXT, "After each prompt, or as the context allows; default: 128.", min=1)] = 128,
    cells: Annotated[int, option(PIPELINE, "KV cells of each model; default: as many as texts take.", min=0)] = 0,
    out: Annotated[Path, path_option(OUTPUT, "The trace, as JSON; default: trace.json.")] = Path("trace.json"),
) -> None:
    """Let the target write, and note where its tokens stand among the draft's candidates."""
    import msgspec

    from pipeinfer.cluster.models import Models
    from pipeinfer.cluster.settings import Settings
    from pipeinfer.commands.output import print_notes
    from pipeinfer.files import check_writable, write_whole
    from pipeinfer.plugins import open_backend
    from pipeinfer.prompt_sets import suite

    how = sampling.sampling()
    settings = Settings(**models.given())
    opened = Models(settings.plan("inproc", 2, drafts=True))
    assert opened.draft is not None
    print_notes(opened)
    context = min(opened.target.context, opened.draft.context)
    engine = open_backend(settings.backend, settings.backend_options)
    target, draft = settings.target, settings.draft
    encode = engine.tokenizer(target).encode
    texts = [encode(text) for text in suite()[:prompts]]
    check_writable(out)
    trace = _record(engine, opened, texts, tokens, how, limit=min(context, cells or context),
                    source=f"{target} + {draft}, {settings.backend}, {prompts} prompts, up to {tokens} tokens each, "
                           f"T = {how.temperature:g}, top-p {how.top_p:g}, seed {how.seed}")  # fmt: skip
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
