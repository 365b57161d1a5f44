"""The authors' compiled programs beside our llama.cpp backend: their command lines, and trials out of what they write.

All their times are read from outside, from one monotonic clock: when text came out of them. docs/artifact.md says what
they print and where that was found out.
"""

import math
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.cluster.mpi_world import in_mpi_world
from pipeinfer.cluster.placement import even_split
from pipeinfer.engine.backend import BadModel, Tokenizer
from pipeinfer.engine.huggingface.folder import find_folder
from pipeinfer.engine.model_cache import cache_folder, expanded
from pipeinfer.engine.text_stream import continuation
from pipeinfer.errors import one_line
from pipeinfer.plugins import BACKENDS, load, open_backend
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.results.records import Record
from pipeinfer.results.trial import Trial
from pipeinfer.study.external_program import Chunk, ProgramRun, joined, run_program
from pipeinfer.study.identity import record_of
from pipeinfer.study.points import ProgramCell
from pipeinfer.study.recipes import BUILD, PEER_PROGRAMS, Artifact, Live, Recipe
from pipeinfer.workload import WorkloadError

FOLDERS = ("", "bin", "build/bin")
"""Where builds leave programs: make, an installed copy, CMake."""

ITERATIVE = "main"
"""The program without a draft model: its ranks are the target's alone, and it repeats the prompt among the text."""

REPEATING = {ITERATIVE, *PEER_PROGRAMS}
"""Programs that write the prompt before what they make of it."""

SILENCE_S = 300.0
"""A program that writes nothing for this long is ended. Loading is silent, and so is reading a long prompt."""

LAST = re.compile(rb"\bdecoded +\d+ tokens|total time *=", re.MULTILINE)
"""What a program writes to standard error when the text is complete."""

OWN_SPEEDS = (
    re.compile(rb"\bdecoded.*speed: *([\d.]+|inf) t/s", re.MULTILINE),
    re.compile(rb"(?<!prompt)\s+eval time.*?([\d.]+|inf) tokens per second"),
)
"""Tokens/s by the program's own clock, the first that is found."""

CHATTER = re.compile(rb"Size of (?:first|second) split: \d+, element: [\d.]+\n")
"""What the synchronous baseline writes between its tokens."""

# What to run


def with_artifact(recipe: Recipe, artifact: Artifact) -> Recipe:
    """The recipe with its programs, and with GGUF files that both sides can read. Raises WorkloadError or BadModel."""
    assert recipe.live is not None
    if in_mpi_world():
        raise WorkloadError("--artifact starts MPI worlds of its own, one for each side: run it without mpirun")
    for program in {contender.program for contender in recipe.strategies.values() if contender.program}:
        find_program(artifact.folder, program)
    if shutil.which(shlex.split(artifact.launcher)[0]) is None:
        raise WorkloadError(f'no "{artifact.launcher}" found: give --artifact-mpirun, of the MPI they were built with')
    return msgspec.structs.replace(recipe, live=with_gguf(recipe.live), artifact=artifact)


def with_gguf(live: Live) -> Live:
    """The same with GGUF files for models, which both sides read. Raises WorkloadError or BadModel."""
    quantisation = str(live.backend_options.get("quantisation", "f16"))
    names = {"target": live.target, "draft": live.draft}
    return msgspec.structs.replace(live, **{name: gguf_of(model, quantisation) for name, model in names.items()})


def gguf_of(model: str, quantisation: str = "f16") -> str:
    """The GGUF file of a model: given as one, or exported from the built-in pair or from another Llama model's folder.
    Raises WorkloadError or BadModel."""
    path = expanded(model)
    if path.is_file():
        return str(path.resolve())
    if not (model.startswith("builtin:") or path.is_dir()):
        raise WorkloadError(f"{model}: no such file; these programs read GGUF files")
    load(BACKENDS, "llamacpp")  # says what to install where it does not load
    from pipeinfer_llamacpp.export import exported

    return str(exported(find_folder(model), quantisation, cache_folder("llamacpp"), untied=True).resolve())


def find_program(folder: str, name: str, how: str = BUILD) -> Path:
    """The program of that name in a folder where it was built; `how` says the way. Raises WorkloadError."""
    for place in FOLDERS:
        path = expanded(folder) / place / name
        if path.is_file() and os.access(path, os.X_OK):
            return path.resolve()
    raise WorkloadError(f'{folder}: no program "{name}" there, nor in bin or build/bin; {how}')


def command(cell: ProgramCell, layers: int, prompt: Path) -> list[str]:
    """The command line of a cell. `layers` of the target are split as ours are; the prompt is in a file."""
    drafts = cell.program != ITERATIVE
    ranks = cell.live.stages + drafts
    threads = ",".join([str(cell.live.backend_options.get("threads", 1))] * ranks)
    # They cut products with a share down to whole layers: a little more than the share keeps rounding out of it.
    counts = [stop - start for start, stop in even_split(layers, cell.live.stages)]
    shares = ",".join(f"{(count + 0.01) / layers:.6f}" for count in counts)
    return [
        *shlex.split(cell.artifact.launcher), "-n", str(ranks),
        str(find_program(cell.artifact.folder, cell.program)),
        "-m", cell.live.target, *(["-md", cell.live.draft] if drafts else []),
        "-f", str(prompt), "-n", str(cell.live.tokens),
        "--mpi-layer-split", shares + "/1.0" * drafts, "-t", threads, "-tb", threads,
        "--temp", "-1.0", "--repeat-last-n", "0", "--ignore-eos",
        *cell.words, *shlex.split(cell.artifact.arguments),
    ]  # fmt: skip


# Running it


def run_programs(
    cells: Iterable[ProgramCell], generate: Callable[[ProgramCell, Path], ProgramRun]
) -> Iterator[Record]:
    """A record for each cell, of what its program wrote as `generate` ran it on the prompt in a file, or of what went
    wrong. The file's folder is the program's own."""
    for cell in cells:
        start = time.perf_counter()
        error, trial = "", None
        try:
            trial = _trial(cell, generate)
        except (BadModel, WorkloadError, OSError, NoTrial) as failed:
            error = f"{cell.program}: {one_line(failed)}"
        yield record_of(cell, trial, time.perf_counter() - start, error=error)


class NoTrial(Exception):  # noqa: N818 - reads as what happened
    """There is no trial in what the program wrote."""


def _trial(cell: ProgramCell, generate: Callable[[ProgramCell, Path], ProgramRun]) -> Trial:
    text = prompt_named(cell.prompt).text
    with tempfile.TemporaryDirectory(prefix="pipeinfer-program-") as folder:  # they leave logs and tables behind
        prompt = Path(folder) / "prompt.txt"
        prompt.write_text(text + "\n", encoding="utf-8")  # of which they drop the last line break
        found = generate(cell, prompt)
    return trial_of(found, cell, text, _backend(cell).tokenizer(cell.live.target))


def _backend(cell: ProgramCell) -> Any:
    """Ours, which reads the same model."""
    return open_backend(cell.live.backend, cell.live.backend_options)


def generate(cell: ProgramCell, prompt: Path, silence_s: float = SILENCE_S) -> ProgramRun:
    """What a program of the authors writes, on ranks of its own."""
    line = command(cell, _backend(cell).info(cell.live.target).layers, prompt)
    return run_program(line, prompt.parent, silence_s=silence_s, last=LAST)


def trial_of(found: ProgramRun, cell: ProgramCell, prompt: str, tokenizer: Tokenizer) -> Trial:
    """A trial with a token at the time at which its text was read. Raises NoTrial."""
    said = joined(found.err)
    if found.problem or LAST.search(said) is None:
        raise NoTrial(found.problem or f"ended with exit code {found.code}: {_complaint(said)}")
    repeats_prompt = cell.program in REPEATING
    prompt_at = _seen(found.out if repeats_prompt else found.err, prompt)
    if repeats_prompt and prompt_at is None:
        raise NoTrial(f"its output does not hold the prompt: {joined(found.out)[:80]!r}")
    text, arrivals = _text(found.out, prompt if repeats_prompt else "")
    ids, emit_s = _tokens(text, arrivals, tokenizer, cell.live.tokens)
    if len(ids) < 2:
        raise NoTrial(f"it wrote {len(ids)} tokens: {_complaint(said)}")
    start = prompt_at or 0.0
    prompt_ids = tokenizer.encode(prompt)
    return Trial(
        strategy=cell.program,
        fidelity="real",
        prompt_tokens=len(prompt_ids),
        token_ids=tuple(ids),
        emit_s=tuple(at - start for at in emit_s),
        reason="length",
        runs=(),
        ranks=(),
        processor_s=_processor_s(found.out, start, emit_s[-1]),
        config={
            **msgspec.to_builtins(cell), "text": continuation(tokenizer, prompt_ids, ids),
            "loaded_s": prompt_at, "whole_s": found.seconds,
            "own_tokens_per_second": _own_speed(said), "exit_code": found.code,
        },
    )  # fmt: skip


def _processor_s(chunks: list[Chunk], start: float, end: float) -> float:
    """What was used of processors between two times at which something was read; 0 where it was not counted."""
    by_then = {chunk.at_s: chunk.processor_s for chunk in chunks}
    used = by_then.get(end, math.nan) - by_then.get(start, math.nan)
    return 0.0 if math.isnan(used) else used


def _seen(chunks: list[Chunk], prompt: str) -> float | None:
    """When the prompt had been written whole: the model was loaded, and reading the prompt began."""
    wanted = prompt.strip().encode()
    for end in range(1, len(chunks) + 1):
        if wanted in joined(chunks[:end]):
            return chunks[end - 1].at_s
    return None


def _text(chunks: list[Chunk], prompt: str) -> tuple[str, list[tuple[float, int]]]:
    """The generated text, and how many of its characters had come by when."""
    so_far, arrivals = "", []
    for end in range(1, len(chunks) + 1):
        whole = CHATTER.sub(b"", joined(chunks[:end])).decode(errors="ignore")
        _, there, after = whole.partition(prompt.strip()) if prompt else ("", " ", whole)
        if not there:
            continue
        so_far = after if not prompt else after.removeprefix(prompt[len(prompt.rstrip()) :])
        arrivals.append((chunks[end - 1].at_s, len(so_far)))
    return so_far, arrivals


def _tokens(
    text: str, arrivals: list[tuple[float, int]], tokenizer: Tokenizer, most: int
) -> tuple[list[int], list[float]]:
    """At most that many tokens of a text, counted by our tokenizer, and when each had come."""
    emit_s: list[float] = []
    for at, length in arrivals:
        emit_s += [at] * (len(tokenizer.encode(text[:length], add_special=False)) - len(emit_s))
    ids = tokenizer.encode(text, add_special=False)[:most]
    return ids, emit_s[: len(ids)]


def _own_speed(said: bytes) -> str:
    """As the program printed it, which may be `inf`; "" when it did not."""
    found = next((match for pattern in OWN_SPEEDS if (match := pattern.search(said))), None)
    return found.group(1).decode() if found else ""


def _complaint(said: bytes) -> str:
    """The line that says what went wrong: the first with an error, else the last."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it said nothing")
