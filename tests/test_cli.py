"""The command line: what it prints, what it refuses, and what it costs to start."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from processes import EMULATED, PROMPT, emulated_text, generating, start

from pipeinfer.cli import main
from pipeinfer.runtime.transports import open_member
from pipeinfer.runtime.transports.keys import read_keys, write_keys
from pipeinfer.testing.models import write_llama

Run = Callable[..., tuple[int, str, str]]
QUICK = ["generate", " ".join(PROMPT), *EMULATED, "--transport", "inproc", "--tokens", "24"]
KEYS = {
    "token_ids", "text", "strategy", "tokens_per_second", "ttft_s", "itl_s", "acceptance_length", "acceptance_rate",
    "runs", "ranks",
}  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `pipeinfer ARGUMENTS` in this process: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeinfer", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        return code, *capsys.readouterr()

    return run


def emulated_ids(count: int) -> list[int]:
    return [int(word) for word in emulated_text(count).split()]


# What it prints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["iterative", "speculative", "pipeinfer"])
def test_json_is_one_object_with_the_figures(run: Run, strategy: str) -> None:
    code, output, _ = run(*QUICK, "--json", "--strategy", strategy, "--nodes", "3")
    result = json.loads(output)
    assert code == 0
    assert result.keys() >= KEYS
    assert result["token_ids"] == emulated_ids(24)
    assert result["text"] == emulated_text(24)
    assert result["strategy"] == strategy
    assert result["tokens_per_second"] > 0
    assert result["ttft_s"] > 0
    assert result["itl_s"].keys() == {"mean", "p50", "p95", "p99"}
    assert result["runs"].keys() >= {"submitted", "verified", "cancelled"}
    assert result["reason"] == "length"
    roles = ["target"] * 3 if strategy == "iterative" else ["target", "target", "draft"]
    assert [rank["role"] for rank in result["ranks"]] == roles
    assert all(rank["peak_memory"] > 0 for rank in result["ranks"])
    if strategy != "iterative":
        assert result["acceptance_rate"] > 0
        assert result["acceptance_length"] > 1


def test_text_goes_to_a_pipe_as_it_is_committed() -> None:
    with generating("--strategy", "iterative") as generation:
        text = generation.read_some()  # of some 3000 tokens, which take a minute
        assert generation.process.poll() is None
        assert emulated_text(3000).startswith(text)


def test_the_summary_goes_to_the_errors_so_that_the_output_is_the_text(run: Run) -> None:
    code, output, errors = run(*QUICK)
    assert code == 0
    assert output == emulated_text(24) + "\n"
    for label in ("strategy", "speed", "first token", "between tokens", "drafts", "runs", "rank 0", "rank 3"):
        assert f"\n{label}" in "\n" + errors
    assert "24 tokens" in errors


@pytest.mark.parametrize("strategy", ["iterative", "speculative", "pipeinfer"])
def test_a_stop_string_ends_every_strategy_at_the_same_token(run: Run, strategy: str) -> None:
    """The string is completed in the middle of a group of tokens; ids, times and text say the same."""
    ids = emulated_ids(24)
    stop = f"{str(ids[9])[-1]} {ids[10]}"
    code, output, _ = run(*QUICK, "--json", "--strategy", strategy, "--stop", stop, "--backend-option", "acceptance=1")
    result = json.loads(output)
    assert code == 0
    assert result["reason"] == "stop"
    assert result["token_ids"] == ids[:11]
    assert result["text"] == emulated_text(10)[:-1]


@pytest.mark.parametrize("strategy", ["iterative", "speculative", "pipeinfer"])
def test_a_stop_string_counts_where_the_tokens_run_out_in_the_same_group(run: Run, strategy: str) -> None:
    ids = emulated_ids(24)
    options = ["--strategy", strategy, "--stop", f" {ids[9]}", "--backend-option", "acceptance=1"]
    for tokens in ("10", "11", "12"):
        result = json.loads(run(*QUICK, "--json", *options, "--tokens", tokens)[1])
        assert result["token_ids"] == ids[:10]
        assert result["text"] == emulated_text(9)
        assert result["reason"] == "stop"


def test_the_first_of_several_stop_strings_counts(run: Run) -> None:
    ids = emulated_ids(24)
    _, output, _ = run(*QUICK, "--json", "--stop", f" {ids[12]}", "--stop", f" {ids[5]}", "--stop", "never")
    assert json.loads(output)["token_ids"] == ids[:6]


def test_layers_are_split_as_said(run: Run) -> None:
    _, output, _ = run(*QUICK, "--json", "--nodes", "3", "--layers", "0.25,0.75/1")
    assert [rank["layers"] for rank in json.loads(output)["ranks"]] == [[0, 1], [1, 4], [0, 1]]


def test_layers_say_how_many_ranks_there_are(run: Run) -> None:
    _, output, _ = run(*QUICK, "--json", "--layers", "1,1,2")
    assert [rank["layers"] for rank in json.loads(output)["ranks"]] == [[0, 1], [1, 2], [2, 4], [0, 1]]


@pytest.mark.parametrize(
    ("options", "chunk", "chunks"),
    [([], 30, 2), (["--prompt-chunk", "25"], 25, 3), (["--prompt-chunk", "whole"], 60, 1)],
)
def test_the_prompt_goes_in_chunks(run: Run, options: list[str], chunk: int, chunks: int) -> None:
    command = ["generate", "word " * 60, *QUICK[2:], "--nodes", "3", "--strategy", "iterative", *options]
    result = json.loads(run(*command, "--json")[1])
    assert (result["prompt_tokens"], result["prompt_chunk"], result["runs"]["prompt"]) == (60, chunk, chunks)
    said = "one piece" if chunks == 1 else f"{chunks} chunks of {chunk}"
    assert f"prompt of 60 tokens in {said}" in " ".join(run(*command)[2].split())


@pytest.mark.parametrize("options", [["--layers", "3,1/1,2"], ["--nodes", "4", "--layers", "/1,2"]])
def test_what_stands_after_the_slash_splits_the_draft(run: Run, options: list[str]) -> None:
    _, output, _ = run(*QUICK, "--json", "--backend-option", "draft_layers=3", *options)
    result = json.loads(output)
    assert result["token_ids"] == emulated_ids(24)
    assert [rank["role"] for rank in result["ranks"]] == ["target", "target", "draft", "draft"]
    assert [rank["layers"] for rank in result["ranks"]][2:] == [[0, 1], [1, 3]]
    assert all(rank["busy_s"] > 0 for rank in result["ranks"])
    iterative = json.loads(run(*QUICK, "--json", "--strategy", "iterative", *options)[1])
    assert {rank["role"] for rank in iterative["ranks"]} == {"target"}


def test_few_sequence_ids_cost_branches_and_no_token(run: Run) -> None:
    for sequences in ("1", "4"):
        _, output, _ = run(*QUICK, "--json", "--strategy", "pipeinfer", "--sequences", sequences, "-o", "branches=8")
        assert json.loads(output)["token_ids"] == emulated_ids(24)


def test_slow_links_are_slow(run: Run) -> None:
    quick = json.loads(run(*QUICK, "--json", "--strategy", "iterative", "--nodes", "2")[1])
    limits = ("--latency", "20ms", "--bandwidth", "1Gbit")
    slow = json.loads(run(*QUICK, "--json", "--strategy", "iterative", "--nodes", "2", *limits)[1])
    assert slow["token_ids"] == quick["token_ids"]
    # Three links lie between the head and the head.
    assert slow["itl_s"]["p50"] > quick["itl_s"]["p50"] + 0.05


def test_the_prompt_comes_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text("three small words")
    _, output, _ = run("generate", "--file", str(file), *QUICK[2:], "--json")
    assert json.loads(output)["prompt_tokens"] == 3


def test_the_prompt_comes_from_standard_input() -> None:
    command = [sys.executable, "-m", "pipeinfer", "generate", "--file", "-", *QUICK[2:], "--json"]
    done = subprocess.run(command, input="four words of prompt", capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["prompt_tokens"] == 4


def test_the_same_seed_gives_the_same_text(run: Run) -> None:
    """With the built-in pair, and another seed gives another."""
    words = ["generate", "def add(", "--transport", "inproc", "--nodes", "2", "--tokens", "12", "--json"]
    hot = [*words, "--temperature", "0.8", "--top-p", "0.95", "--seed"]
    texts = [json.loads(run(*hot, seed, *more)[1])["text"] for seed, more in
             [("1", []), ("1", ["--strategy", "iterative"]), ("2", [])]]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]


def test_the_trace_shows_stages_runs_drafts_and_cancellations(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    options = ["--backend-option", "acceptance=0.3", "--backend-option", "draft_s=0.002"]
    code, output, _ = run(*QUICK, "--json", "--nodes", "3", "--trace", str(file), *options)
    events = json.loads(file.read_text())["traceEvents"]
    assert code == 0
    names = [event["args"]["name"] for event in events if event["ph"] == "M" and event["name"] == "thread_name"]
    assert any("target layers 0-1" in name for name in names)
    assert any("target layers 2-3" in name for name in names)
    assert any("draft" in name for name in names)
    spans = [event for event in events if event["ph"] == "X"]
    assert {span["cat"] for span in spans} >= {"prompt", "speculative", "draft"}
    assert any(span["args"]["aborted"] for span in spans)
    assert json.loads(output)["runs"]["cancelled"] > 0
    for rank in range(3):
        mine = sorted((span["ts"], span["dur"]) for span in spans if span["tid"] == rank)
        assert len(mine) > 3
        assert all(start + length <= later for (start, length), (later, _) in pairwise(mine))


def test_plugins_lists_what_there_is(run: Run) -> None:
    code, output, _ = run("plugins")
    assert code == 0
    for name in ("iterative", "speculative", "pipeinfer", "inproc", "tcp", "numpy", "emulated"):
        assert name in output


def test_plugins_as_json(run: Run) -> None:
    found = json.loads(run("plugins", "--json")[1])
    states = {(plugin["group"], plugin["name"]): plugin["state"] for plugin in found}
    assert states["pipeinfer.backends", "numpy"] == "ok"
    assert states["pipeinfer.strategies", "pipeinfer"] == "ok"


@pytest.mark.parametrize("command", [[], ["generate"], ["worker"], ["plugins"]])
def test_help_is_there(run: Run, command: list[str]) -> None:
    code, output, _ = run(*command, "--help")
    assert code == 0
    assert "Usage: pipeinfer" in output


PIPEINFER = ("--strategy", "pipeinfer")


# What it refuses -----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "unknown strategy": (["--strategy", "pipeinfr"], ["no strategy", 'did you mean "pipeinfer"?']),
    "unknown backend": (["--backend", "nunpy"], ["no backend", 'did you mean "numpy"?']),
    "unknown transport": (["--transport", "tpc"], ["no transport", 'did you mean "tcp"?']),
    "unknown strategy option": (
        [*PIPEINFER, "-o", "drafts=3"],
        ['no option "drafts"', 'did you mean "draft"?', "cutoff"],
    ),
    "strategy option out of range": ([*PIPEINFER, "-o", "draft=0"], ["draft = 0", "1 to 64"]),
    "strategy option of the wrong type": ([*PIPEINFER, "-o", "draft=many"], ["draft = many: expected a whole number"]),
    "strategy option that is no switch": (
        [*PIPEINFER, "-o", "cancellation=no"],
        ["cancellation = no: expected true or false"],
    ),
    "option without a value": (["-o", "draft"], ["draft", "name=value"]),
    "unknown backend option": (["--backend-option", "layers_s=3"], ["emulated", 'did you mean "layer_s"?']),
    "backend option out of range": (["--backend-option", "acceptance=3"], ["acceptance"]),
    "a temperature that is none": (["--temperature", "nan"], ["temperature"]),
    "a temperature without an end": (["--temperature", "inf"], ["temperature = inf"]),
    "a seed of more than 64 bits": (["--seed", str(2**64)], [f"seed = {2**64}", f"0 to {2**64 - 1}"]),
    "a negative seed": (["--seed", "-1"], ["seed"]),
    "a share that is none": (["--cpu-share", "nan"], ["cpu_share = nan: expected 0.01 to 1"]),
    "cells beyond any machine": (["--cells", "9" * 30], ["cells = 999", "0 to 2147483647"]),
    "sequences beyond any machine": (["--sequences", "9" * 30], ["sequences = 999"]),
    "a latency without an end": (["--latency", "1e400s"], ["latency", "3600"]),
    "layers beyond any machine": (["--backend-option", "layers=99999999999"], ["layers = 99999999999: expected 1 to"]),
    "a context of nothing": (["--backend-option", "context=0"], ["context = 0: expected 1 to"]),
    "too few nodes": (["--nodes", "1"], ["--nodes 2"]),
    "more stages than layers": (["--nodes", "6"], ["4 layers", "5 stages"]),
    "split that is no split": (["--layers", "a,b"], ["a,b", "0.5,0.5"]),
    "split that does not add up": (["--layers", "0.5,0.6"], ["1.1"]),
    "split with a wrong draft": (["--layers", "0.5,0.5/2"], ['draft: layer split "2" adds up to 2']),
    "split without a draft": (["--layers", "0.5,0.5/"], ['draft: layer split ""', "expected numbers"]),
    "more draft ranks than draft layers": (
        ["--layers", "2,2/0.5,0.5"],
        ['draft: layer split "0.5,0.5": 2 stages for 1 layers'],
    ),
    "split of the draft and nodes disagree": (["--layers", "2,2/1,1", "--nodes", "3"], ["2,2/1,1 is for 4 ranks"]),
    "too few nodes for the draft's ranks": (
        ["--layers", "/1,1", "--nodes", "2"],
        ["2 ranks of its own: expected --nodes 3 or more"],
    ),
    "split and nodes disagree": (["--layers", "0.5,0.5", "--nodes", "4"], ["0.5,0.5", "4"]),
    "bandwidth without sense": (["--bandwidth", "fast"], ["fast", "1Gbit"]),
    "latency without a unit": (["--latency", "3"], ['"3"', "ms"]),
    "prompt in chunks of nothing": (["--prompt-chunk", "0"], ['prompt chunk "0"', "auto or whole"]),
    "prompt twice": (["--file", "x"], ["not both"]),
    "trace nowhere": (["--trace", "/nonexistent/trace.json"], ["/nonexistent/trace.json"]),
    "workers without a key": (["--workers", "tcp://127.0.0.1:1,tcp://127.0.0.1:2"], ["--key"]),
    "key without workers": (["--key", "x"], ["--workers"]),
    "no cells for the prompt": (["--cells", "2"], ["prompt has 2 tokens", "--cells"]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_is_one_clear_line(run: Run, reason: str) -> None:
    arguments, said = REFUSED[reason]
    code, output, errors = run(*QUICK, *arguments)
    assert_refused(code, output, errors, *said)


def assert_refused(code: int, output: str, errors: str, *said: str) -> None:
    assert code == 2, errors
    assert output == ""
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1, errors
    for words in said:
        assert words in errors


def test_the_largest_seed_and_more_tokens_than_fit_are_right(run: Run, tmp_path: Path) -> None:
    options = ["--seed", str(2**64 - 1), "--temperature", "0.8", "--tokens", "9" * 30, "--log", str(tmp_path / "log")]
    code, output, _ = run(*QUICK, *options, "--backend-option", "context=20", "--json")
    result = json.loads(output)
    assert (code, result["reason"], len(result["token_ids"])) == (0, "context", 18)


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--seed", str(2**64)],
        ["simulate", "--width-cost", "inf"],
        ["reproduce", "timeline", "--jobs", "9" * 20],
        ["worker", "--new-key", "--key", "key", "--listen", "tcp://127.0.0.1:0", "--rank", "9" * 20],
        ["compare", "a", "b", "--threshold", "nan"],
    ],
    ids=" ".join,
)
def test_other_numbers_out_of_range(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(*run(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_file_that_is_not_there(run: Run) -> None:
    assert_refused(*run("generate", "--file", "/nonexistent/prompt"), "/nonexistent/prompt", "No such file")


def test_a_prompt_file_that_is_no_text(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"\xff\xfe\x00")
    assert_refused(*run("generate", "--file", str(file)), str(file), "UTF-8")


def test_an_empty_prompt(run: Run) -> None:
    assert_refused(*run("generate", "", *QUICK[2:]), "prompt is empty")


def test_a_prompt_longer_than_the_context(run: Run) -> None:
    refused = run("generate", "word " * 40, *QUICK[2:], "--backend-option", "context=32")
    assert_refused(*refused, "prompt has 40 tokens", "context of 32 tokens: shorten it")


def numpy(target: Path | str, draft: Path | str = "builtin:draft") -> list[str]:
    """Arguments for these models."""
    words = ["generate", "some words", "--transport", "inproc", "--nodes", "2", "--tokens", "4"]
    return [*words, "--target", str(target), "--draft", str(draft)]


def test_a_model_folder_that_is_not_there(run: Run) -> None:
    assert_refused(*run(*numpy("/nonexistent/model")), "/nonexistent/model")


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_with_a_broken_file(run: Run, tmp_path: Path, broken: str) -> None:
    folder = write_llama(tmp_path / "model")
    assert run(*numpy(folder, folder))[0] == 0
    (folder / broken).write_bytes(b"{ this is neither JSON nor a tensor")
    assert_refused(*run(*numpy(folder, folder)), str(folder))


def test_models_with_other_vocabularies(run: Run, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    assert_refused(*run(*numpy("builtin:target", folder)), "different vocabularies", str(folder))


# Workers started by hand ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], Path]]:
    """Addresses of three running workers, and their key file. They serve one head after another."""
    key = tmp_path_factory.mktemp("workers") / "key.json"
    write_keys(key)
    listen = ["--listen", "tcp://127.0.0.1:0", "--key", str(key)]
    processes = [start("worker", "--rank", str(rank), *listen) for rank in range(3)]
    try:
        yield [process.stdout.readline().split()[1] for process in processes if process.stdout is not None], key
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


def test_workers_serve_one_head_after_another(run: Run, workers: tuple[list[str], Path]) -> None:
    addresses, key = workers
    there = ["--workers", ",".join(addresses), "--key", str(key)]
    for strategy in ("pipeinfer", "speculative"):
        code, output, errors = run(*QUICK, "--json", "--strategy", strategy, *there)
        assert code == 0, errors
        assert json.loads(output)["token_ids"] == emulated_ids(24)


def test_workers_do_not_serve_another_key(
    run: Run, workers: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses, key = workers
    other = tmp_path / "other.json"
    write_keys(other)
    with monkeypatch.context() as patch:
        patch.setattr("pipeinfer.cluster.remote_workers.open_member", partial(open_member, connect_s=1.0))
        assert_refused(*run(*QUICK, "--workers", ",".join(addresses), "--key", str(other)), "same key file?")
    assert json.loads(run(*QUICK, "--json", "--workers", ",".join(addresses), "--key", str(key))[1])["token_ids"]


def test_workers_in_another_order_are_told_apart(run: Run, workers: tuple[list[str], Path]) -> None:
    addresses, key = workers
    assert_refused(*run(*QUICK, "--workers", ",".join(reversed(addresses)), "--key", str(key)), "rank")


def test_as_many_workers_as_ranks(run: Run, workers: tuple[list[str], Path]) -> None:
    addresses, key = workers
    refused = run(*QUICK, "--layers", "1,1,2", "--workers", ",".join(addresses), "--key", str(key))
    assert_refused(*refused, "3 workers")


def test_a_worker_at_a_busy_port(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    write_keys(key)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert_refused(*run("worker", "--rank", "0", "--listen", address, "--key", str(key)), address, "in use")


@pytest.mark.parametrize(("content", "said"), [(None, "cannot read the key file"), ("nonsense", "not a key file")])
def test_a_worker_with_a_wrong_key_file(run: Run, tmp_path: Path, content: str | None, said: str) -> None:
    key = tmp_path / "key.json"
    if content is not None:
        key.write_text(content)
    assert_refused(*run("worker", "--rank", "0", "--listen", "tcp://127.0.0.1:0", "--key", str(key)), str(key), said)


def test_a_worker_makes_its_key_once(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.write_text("{}")
    refused = run("worker", "--rank", "0", "--listen", "tcp://127.0.0.1:0", "--key", str(key), "--new-key")
    assert_refused(*refused, str(key))
    assert key.read_text() == "{}"


def test_a_key_can_be_made_without_a_worker(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    assert run("worker", "--new-key", "--key", str(key))[0] == 0
    assert read_keys(key).file == key
    assert_refused(*run("worker", "--key", str(key)), "needs --listen")
    assert_refused(*run("worker", "--rank", "0", "--key", str(key)), "needs --listen")
    half = tmp_path / "half.json"
    assert_refused(*run("worker", "--new-key", "--rank", "0", "--key", str(half)), "needs --listen")
    assert not half.exists()


# What it costs to start ----------------------------------------------------------------------------------------------

IMPORT = """
import sys, time
start = time.perf_counter()
import pipeinfer
print(time.perf_counter() - start, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_importing_pipeinfer_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    seconds, modules = [], set()
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=60)
        taken, *names = done.stdout.split()
        seconds.append(float(taken))
        modules.update(names)
    assert "pipeinfer" in modules
    assert modules.isdisjoint({"torch", "llama_cpp", "mpi4py", "zmq", "pandas", "numpy"})
    with capsys.disabled():
        print(f"\nimport pipeinfer: {1e3 * min(seconds):.1f} ms", end=" ")


def test_help_loads_nothing_heavy() -> None:
    script = "import sys; from pipeinfer.cli import app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert {"torch", "llama_cpp", "mpi4py", "zmq", "pandas", "numpy"}.isdisjoint(done.stdout.split())
