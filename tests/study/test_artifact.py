"""The authors' programs from outside, played by stand-ins: what is asked of them, when their text came, and what is
said where they are missing, crash, hang or write something else."""

import json
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from processes import alive
from typer.testing import CliRunner

from pipeinfer.cli import app
from pipeinfer.cluster.placement import even_split
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_backend
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.report.write import conclude
from pipeinfer.results import metrics
from pipeinfer.results.records import Record, Store
from pipeinfer.study import external_program as watch_module
from pipeinfer.study.artifact import LAST, command, find_program, generate, run_programs, trial_of, with_artifact
from pipeinfer.study.external_program import Chunk, ProgramRun, run_program
from pipeinfer.study.mpi_cells import check_world, needs_world, run_in_world
from pipeinfer.study.points import LiveCell, ProgramCell
from pipeinfer.study.recipes import Artifact, Contender, Live, Recipe, read_recipe
from pipeinfer.study.run import run
from pipeinfer.study.selection import Wish, select
from pipeinfer.workload import WorkloadError

PROMPT = "merge-sorted"
TOKENIZER = open_backend("numpy", {}).tokenizer("builtin:target")
LIVE = Live(
    backend="numpy", target="builtin:target", draft="builtin:draft", transport="inproc", stages=2, prompts=[PROMPT],
    temperatures=[0.0], top_p=1.0, seed=1, tokens=12, repeats=1,
)  # fmt: skip
TEXT = "\n    for item in first:\n        result.append(item)\n    return sorted(result) + \u00e4\u20ac"

WORDS = ["\n    return", " sorted", "(result)"]

STAND_IN = """#!{python}
import json, os, subprocess, sys, time
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
given = {{word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-")}}
how = given.get("--how", "")
def say(stream, text, pause=0.0):
    stream.buffer.write(text if isinstance(text, bytes) else text.encode())
    stream.flush()
    time.sleep(pause)
prompt = open(given["-f"]).read()[:-1]
if how.startswith("arguments:"):
    open(how.partition(":")[2], "w").write(json.dumps([name, *words, os.getcwd(), prompt]))
say(sys.stderr, "loading\\n", 0.2)
if how == "crash":
    say(sys.stderr, "error loading model: create_tensor: 'output.weight' not found\\nsome more words\\n")
    sys.exit(139)
if how == "garbage":
    say(sys.stdout, b"\\xff\\xfe" + os.urandom(5000))
elif how == "early":
    say(sys.stderr, "GGML_ASSERT: ggml-mpi.c:1\\n")
    sys.exit(0)
elif how.startswith("child:"):
    child = subprocess.Popen(["sleep", "60"])
    open(how.partition(":")[2], "w").write(str(child.pid))
    child.wait()
else:
    say(sys.stdout if name == "main" else sys.stderr, prompt, 0.1)
    for word in json.loads({text!r}):
        say(sys.stdout, word, {pause})
if name == "main":
    say(sys.stderr, "llama_print_timings: prompt eval time = 1 ms / 9 tokens (1 ms per token, 1.5 tokens per second)\\n"
        "llama_print_timings:        eval time = 1 ms / 9 runs (1 ms per token, 77.5 tokens per second)\\n"
        "llama_print_timings:       total time = 9 ms\\n")
else:
    say(sys.stderr, "\\ndecoded   12 tokens in    0.100 seconds, speed:  inf t/s\\n")
if how == "stay":
    time.sleep(60)
sys.exit(1 if how == "fail at the end" else 0)
"""


def build(folder: Path, pieces: list[str], pause: float = 0.0) -> Artifact:
    """A folder with the three programs, and an `mpirun` that starts one process."""
    text = STAND_IN.format(python=sys.executable, text=json.dumps(pieces), pause=pause)
    for name in ("main", "speculative_orig", "speculative"):
        script(folder / "build" / "bin" / name, text)
    return Artifact(str(folder), str(script(folder / "mpirun", '#!/bin/sh\nshift 2\nexec "$@"\n')))


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def cell(artifact: Artifact, program: str = "speculative", how: str = "") -> ProgramCell:
    theirs = msgspec.structs.replace(artifact, arguments=f"--how '{how}'")
    return ProgramCell(program, ["-c", "1024"], {"draft": 3}, PROMPT, 0.0, 0, LIVE, theirs)


def one(cell: ProgramCell, silence_s: float = 30.0) -> Record:
    (record,) = run_programs([cell], partial(generate, silence_s=silence_s))
    return record


def quiet(recipe: Recipe, done: int, total: int, left_s: float | None) -> None:
    """No progress display."""


# What is asked of them


@pytest.mark.parametrize("stages", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("layers", [8, 22, 80, 137])
def test_their_shares_of_the_layers_are_ours(tmp_path: Path, layers: int, stages: int) -> None:
    artifact = build(tmp_path, [])
    asked = msgspec.structs.replace(cell(artifact), live=msgspec.structs.replace(LIVE, stages=stages))
    line = command(asked, layers, tmp_path / "prompt.txt")
    target, draft = line[line.index("--mpi-layer-split") + 1].split("/")
    theirs = [int(float(share) * layers) for share in target.split(",")]  # as they cut it
    assert theirs == [stop - start for start, stop in even_split(layers, stages)]
    assert draft == "1.0"
    assert line[1:3] == ["-n", str(stages + 1)]


def test_the_command_line_is_greedy_with_the_same_files_prompt_and_length(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    artifact = build(tmp_path, WORDS)
    assert one(cell(artifact, how=f"arguments:{told}")).error == ""
    name, *words, folder, prompt = json.loads(told.read_text())
    given = {word: words[at + 1] for at, word in enumerate(words[:-1])}
    assert name == "speculative"
    assert (given["-m"], given["-md"], given["-n"], given["--temp"]) == (
        "builtin:target",
        "builtin:draft",
        "12",
        "-1.0",
    )
    assert (given["--draft"], given["-c"], given["-t"]) == ("3", "1024", "1,1,1")
    assert "--ignore-eos" in words
    assert prompt == prompt_named(PROMPT).text
    assert not Path(folder).exists()  # what they leave behind is gone

    assert one(cell(artifact, "main", how=f"arguments:{told}")).error == ""
    name, *words = json.loads(told.read_text())
    assert name == "main"
    assert "-md" not in words
    assert words[words.index("--mpi-layer-split") + 1].count(",") == 1


# When their text came


def watched(out: list[tuple[float, bytes]], err: list[tuple[float, bytes]], **fields: Any) -> ProgramRun:
    ended = b"\ndecoded   12 tokens in    0.100 seconds, speed:   98.765 t/s\n"
    written = [Chunk(*one) for one in out], [Chunk(*one) for one in err] + [Chunk(9.0, ended)]
    return ProgramRun(*written, 10.0, 0, **fields)


def test_tokens_have_the_times_at_which_their_text_came(tmp_path: Path) -> None:
    prompt, ids = prompt_named(PROMPT).text, TOKENIZER.encode(TEXT)
    cuts = [TOKENIZER.decode(ids[:count]).encode() for count in range(len(ids) + 1)]
    pieces = [(3.0 + 0.25 * at, b[len(a) :]) for at, (a, b) in enumerate(pairwise(cuts))]
    asked = cell(build(tmp_path, []))
    asked = msgspec.structs.replace(asked, live=msgspec.structs.replace(LIVE, tokens=10))
    found = trial_of(watched(pieces, [(1.0, b"load"), (2.5, prompt.encode())]), asked, prompt, TOKENIZER)
    assert found.token_ids == tuple(ids[:10])
    assert found.emit_s == tuple(0.5 + 0.25 * at for at in range(10))
    assert metrics.tokens_per_second(found) == pytest.approx(4.0)
    assert metrics.ttft_s(found) == 0.5  # since the prompt was repeated: loading is not in it
    assert found.config["own_tokens_per_second"] == "98.765"
    assert found.config["whole_s"] == 10.0
    assert found.config["text"] == TOKENIZER.decode(ids[:10])


def test_the_iterative_program_repeats_the_prompt_before_its_text(tmp_path: Path) -> None:
    prompt = prompt_named(PROMPT).text
    asked = cell(build(tmp_path, []), "main")
    text = TEXT.encode()
    out = [(2.0, b" " + prompt.encode()[:50]), (2.5, prompt.encode()[50:]), (3.0, text[:30]), (4.0, text[30:-1])]
    found = trial_of(watched([*out, (4.5, text[-1:])], []), asked, prompt, TOKENIZER)  # a character cut in two
    assert found.config["text"] == TOKENIZER.decode(TOKENIZER.encode(TEXT)[:12])
    assert found.config["loaded_s"] == 2.5
    assert found.emit_s[0] == 0.5


def test_what_the_baseline_writes_between_its_tokens_is_no_text(tmp_path: Path) -> None:
    prompt = prompt_named(PROMPT).text
    chatter = b"Size of first split: 2, element: 0.501250\n"
    out = [(3.0, chatter + b"\n    return"), (4.0, b" result"), (5.0, chatter.replace(b"first", b"second"))]
    found = trial_of(watched(out, []), cell(build(tmp_path, []), "speculative_orig"), prompt, TOKENIZER)
    assert found.config["text"] == "\n    return result"
    assert found.config["loaded_s"] is None  # it did not repeat the prompt: nothing to count the first token from


# Stand-ins that are run


def test_a_program_is_timed_by_the_wall_clock_from_its_first_text_on(tmp_path: Path) -> None:
    pieces = [TOKENIZER.decode([token]) for token in TOKENIZER.encode("\n    return sorted(result)")]
    for program, own in (("main", "77.5"), ("speculative", "inf")):
        record = one(cell(build(tmp_path, pieces, pause=0.05), program))
        assert record.error == ""
        assert record.trial is not None
        assert metrics.itl_s(record.trial)["mean"] == pytest.approx(0.05, rel=0.6)
        assert record.trial.emit_s[0] >= 0.05, "the first of two pauses looks shorter to a reader that comes late"
        assert record.trial.config["loaded_s"] >= 0.2
        assert record.trial.config["own_tokens_per_second"] == own


FAILURES = {
    "crash": "ended with exit code 139: error loading model: create_tensor: 'output.weight' not found",
    "early": "ended with exit code 0: GGML_ASSERT: ggml-mpi.c:1",
    "garbage": "its output does not hold the prompt",
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_program_that_fails_is_an_error_in_one_line(tmp_path: Path, how: str) -> None:
    record = one(cell(build(tmp_path, []), "main", how))
    assert record.trial is None
    assert record.error.startswith("main: ")
    assert FAILURES[how] in record.error
    assert "\n" not in record.error


def test_a_text_of_no_tokens_is_an_error(tmp_path: Path) -> None:
    assert "speculative: it wrote 0 tokens" in one(cell(build(tmp_path, []))).error


def test_a_program_that_fails_after_its_text_has_a_trial(tmp_path: Path) -> None:
    record = one(cell(build(tmp_path, WORDS), how="fail at the end"))
    assert record.trial is not None
    assert record.trial.config["exit_code"] == 1


def test_a_program_that_stays_after_its_text_is_ended_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "LEAVE_S", 0.3)
    start = time.monotonic()
    record = one(cell(build(tmp_path, WORDS), how="stay"))
    assert time.monotonic() - start < 20
    assert record.trial is not None
    assert record.trial.config["exit_code"] is None


def test_a_program_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    record = one(cell(build(tmp_path, []), how=f"child:{told}"), silence_s=3.0)
    assert record.error == "speculative: it wrote nothing for 3 s"
    assert not alive(int(told.read_text()))


def test_a_program_that_never_stops_writing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "MOST_BYTES", 1 << 20)
    found = run_program(["yes"], tmp_path, silence_s=5.0, last=LAST)
    assert found.problem == "it wrote more than 1 MiB"


def test_a_launcher_that_is_not_there_is_an_error_in_one_line(tmp_path: Path) -> None:
    record = one(cell(msgspec.structs.replace(build(tmp_path, []), launcher="no-such-mpirun")))
    assert "no-such-mpirun" in record.error
    recipe = read_recipe("artifact")
    with pytest.raises(WorkloadError, match='no "no-such-mpirun" found: give --artifact-mpirun'):
        with_artifact(recipe, Artifact(str(tmp_path), "no-such-mpirun"))


# Where they are missing


def test_a_folder_without_a_program_says_how_to_build_it(tmp_path: Path) -> None:
    artifact = build(tmp_path, [])
    assert find_program(str(tmp_path), "main") == tmp_path / "build" / "bin" / "main"
    (tmp_path / "build" / "bin" / "speculative_orig").chmod(0o644)
    with pytest.raises(WorkloadError, match=r'no program "speculative_orig" there.*LLAMA_MPI=1.*speculative_orig'):
        with_artifact(read_recipe("artifact"), artifact)


def test_other_models_are_files(tmp_path: Path) -> None:
    there = str(script(tmp_path / "model.gguf", ""))
    wish = Wish(live={"target": there, "draft": there}, artifact=build(tmp_path, []))
    (recipe,), _ = select(["artifact"], wish)
    assert recipe.live is not None
    assert recipe.live.target == recipe.live.draft == there
    with pytest.raises(WorkloadError, match="some/folder: no such file"):
        select(["artifact"], msgspec.structs.replace(wish, live={"target": "some/folder"}))


@pytest.mark.parametrize("arguments", [["artifact"], ["--artifact", "."], ["speed", "--artifact", "."]])
def test_the_command_says_in_one_line_what_to_build(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["reproduce", *arguments, "--out", "results"])
    assert done.exit_code != 0
    assert isinstance(done.exception, WorkloadError)
    assert "cmake --build build --config Release --target main speculative_orig speculative" in str(done.exception)
    assert not (tmp_path / "results").exists()


# Both sides


def both(folder: Path) -> Recipe:
    """Our NumPy backend and stand-ins that say what it says, but for one word of the last."""
    strategies = {
        "iterative": Contender(),
        "speculative": Contender(options={"k": [2]}),
        "artifact iterative": Contender(of="iterative", program="main"),
        "artifact speculative": Contender(of="speculative", program="speculative_orig", options={"draft": [2]}),
    }
    return Recipe(
        title="Both", about="Both sides.", claims=[], expected="a table", minutes=0.1, hardware="any", name="artifact",
        strategies=strategies, live=LIVE, artifact=build(folder, ["x"]),
    )  # fmt: skip


def test_one_table_has_ours_and_theirs(tmp_path: Path) -> None:
    recipe = both(tmp_path / "built")
    ours = msgspec.structs.replace(
        recipe, strategies={name: one for name, one in recipe.strategies.items() if not one.program}
    )
    store = Store(tmp_path / "results")
    run(ours, store, 1, quiet)
    ids = next(record.trial.token_ids for record in store.records.values() if record.trial is not None)
    pieces = [TOKENIZER.decode([token]) for token in ids]
    artifact = build(tmp_path / "built", pieces, pause=0.01)
    other = [*pieces[:4], "@", *pieces[5:]]
    script(
        tmp_path / "built/build/bin/speculative_orig",
        STAND_IN.format(python=sys.executable, text=json.dumps(other), pause=0.01),
    )
    recipe = msgspec.structs.replace(recipe, artifact=artifact)
    run(recipe, store, 1, quiet)
    claims, (table,), _ = conclude([recipe], store, tmp_path / "results")
    assert {claim.verdict for claim in claims} == {"not testable here"}
    rows = {(row[0], row[1].split()[0]): dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert list(rows) == [("ours", "iterative"), ("ours", "speculative"), ("main", "iterative"),
                          ("speculative_orig", "speculative")]  # fmt: skip
    theirs, wrong = rows["main", "iterative"], rows["speculative_orig", "speculative"]
    assert theirs["text"] == "the same"
    assert wrong["text"].startswith(f"{PROMPT} differs from character {len(''.join(pieces[:4]))}")
    assert (theirs["tokens/s by its own clock"], wrong["tokens/s by its own clock"]) == ("77.5", "inf")
    assert rows["ours", "iterative"]["tokens/s by its own clock"] == rows["ours", "iterative"]["over ours"] == "-"
    assert theirs["over its iterative"] == "1.00x"
    ratio = float(theirs["tokens/s"]) / float(rows["ours", "iterative"]["tokens/s"])
    assert float(theirs["over ours"].removesuffix("x")) == pytest.approx(ratio, rel=0.5)
    assert wrong["over its iterative"] != "-"
    assert float(theirs["tokens/s"]) < 110
    report = (tmp_path / "results" / "report.md").read_text()
    assert "thread CPU time" in report
    assert "| main | iterative |" in report


def test_the_default_run_leaves_it_out() -> None:
    from pipeinfer.study.recipes import recipe_names

    assert "artifact" not in recipe_names()


# Ours over MPI


def test_live_cells_run_in_a_world_of_their_own() -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    live = msgspec.structs.replace(LIVE, transport="mpi", stages=1)
    asked = [LiveCell("iterative", {}, PROMPT, 0.0, repeat, live) for repeat in range(2)]
    assert needs_world(asked)
    try:
        check_world(asked)
    except LaunchError as problem:  # no launcher: the message says so
        pytest.skip(str(problem))
    found = list(run_in_world(asked))
    assert [record.error for record in found] == ["", ""]
    assert len({record.trial.token_ids for record in found if record.trial is not None}) == 1
    broken = msgspec.structs.replace(asked[0], live=msgspec.structs.replace(live, target="/no/such/model"))
    (record,) = run_in_world([broken])
    assert "/no/such/model" in record.error
