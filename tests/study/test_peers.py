"""llama.cpp's own cluster from outside, played by stand-ins that are given what its programs are given and write as
they do: which servers run, what is asked, what comes of it, and that no server is left."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from processes import alive

from pipeinfer.assets import asset
from pipeinfer.commands.reproduce import ArtifactOptions
from pipeinfer.plugins import open_backend
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.results.records import Record
from pipeinfer.study.artifact import gguf_of, run_programs
from pipeinfer.study.peers import generate, servers, with_peers
from pipeinfer.study.points import LiveCell, ProgramCell, points
from pipeinfer.study.recipes import (
    PEER_SERVER,
    PEERS,
    PEERS_DRAFT,
    PEERS_PLAIN,
    Artifact,
    Live,
    read_recipe,
    recipe_names,
)
from pipeinfer.study.run import records_of
from pipeinfer.study.selection import Wish, select
from pipeinfer.workload import WorkloadError

PROMPT = "merge-sorted"
TEXT = "\n    for item in first:\n        result.append(item)\n    return"
LIVE = Live(
    backend="numpy", target="builtin:target", draft="builtin:draft", transport="inproc", stages=2, prompts=[PROMPT],
    temperatures=[0.0], top_p=1.0, seed=1, tokens=8, repeats=1,
)  # fmt: skip

LOADING_S, DECODING_S = 0.5, 0.1
"""Of a processor."""

SERVER = """#!{python}
import os, socket, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open("{folder}/servers", "a") as file:
    file.write(f"{{os.getpid()}}\\n")
with socket.create_server((given["-H"], int(given["-p"]))) as listening:
    while True:
        listening.accept()[0].close()
"""

PROGRAM = """#!{python}
import fcntl, json, os, socket, sys, termios, time
words = sys.argv[1:]
given = {{word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-")}}
for address in given["--rpc"].split(","):
    host, port = address.split(":")
    socket.create_connection((host, int(port))).close()
open("{folder}/told", "w").write(json.dumps(words))
def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
work({loading})
sys.stdout.write(open(given["-f"]).read()[:-1])
sys.stdout.flush()
while int.from_bytes(fcntl.ioctl(1, termios.FIONREAD, bytes(4)), sys.byteorder):
    time.sleep(0.001)
work({decoding})
for word in json.loads({text!r}):
    sys.stdout.write(word)
    sys.stdout.flush()
sys.stderr.write("0.00.787.848 I decoded    8 tokens in    0.551 seconds, speed:  117.896 t/s\\n"
                 "0.00.788.100 I common_perf_print:       total time =     590.61 ms /   160 tokens\\n")
"""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    words = json.dumps(TEXT.split(" ")).replace('", "', ' ", "')
    for name, text in {PEER_SERVER: SERVER, PEERS_PLAIN: PROGRAM, PEERS_DRAFT: PROGRAM}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(python=sys.executable, folder=tmp_path, text=words, loading=LOADING_S,
                                    decoding=DECODING_S))  # fmt: skip
        path.chmod(0o755)
    return tmp_path


def one(folder: Path, program: str, arguments: list[str], options: dict[str, Any]) -> Record:
    cell = ProgramCell(program, arguments, options, PROMPT, 0.0, 0, LIVE, Artifact(str(folder), ""))
    (record,) = run_programs([cell], partial(generate, silence_s=30.0))
    return record


def started(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "servers").read_text().split()]


def test_a_generation_over_its_servers_is_a_trial(built: Path) -> None:
    record = one(built, PEERS_DRAFT, ["--spec-type", "draft-simple"], {"spec-draft-n-max": 4})
    assert record.error == ""
    assert record.trial is not None
    tokenizer = open_backend("numpy", {}).tokenizer("builtin:target")
    assert tokenizer.decode(record.trial.token_ids) == TEXT[: len(tokenizer.decode(record.trial.token_ids))]
    assert len(record.trial.token_ids) == LIVE.tokens
    assert record.trial.config["own_tokens_per_second"] == "117.896"
    told = json.loads((built / "told").read_text())
    given = dict(zip(told[::2], told[1::2], strict=False))
    assert given["-dev"] == "RPC0,RPC1"
    assert (given["-devd"], given["-ngl"]) == ("none", "99")
    assert told[-4:] == ["--spec-type", "draft-simple", "--spec-draft-n-max", "4"]
    assert len(started(built)) == LIVE.stages
    assert not any(alive(pid) for pid in started(built))


def test_loading_is_no_part_of_its_processor_time(built: Path) -> None:
    trial = one(built, PEERS_PLAIN, [], {}).trial
    assert trial is not None
    assert DECODING_S <= trial.processor_s < LOADING_S


def test_plain_decoding_has_no_draft(built: Path) -> None:
    assert one(built, PEERS_PLAIN, ["-no-cnv"], {}).error == ""
    assert "-md" not in json.loads((built / "told").read_text())


def test_a_program_that_ended_well_without_its_last_lines_is_run_again(built: Path) -> None:
    program, whole, once = (built / "bin" / name for name in (PEERS_PLAIN, "whole", "once"))
    program.rename(whole)
    program.write_text(f'#!/bin/sh\n[ -e {once} ] && exec {whole} "$@"\ntouch {once}\n')
    program.chmod(0o755)
    assert one(built, PEERS_PLAIN, [], {}).error == ""


def test_a_program_that_says_something_else_is_an_error_and_leaves_no_server(built: Path) -> None:
    (built / "bin" / PEERS_PLAIN).write_text("#!/bin/sh\necho error: no such model >&2\nexit 1\n")
    record = one(built, PEERS_PLAIN, [], {})
    assert record.trial is None
    assert record.error == f"{PEERS_PLAIN}: ended with exit code 1: error: no such model"
    assert not any(alive(pid) for pid in started(built))


def test_a_server_that_ends_at_once_is_told_of(built: Path) -> None:
    (built / "bin" / PEER_SERVER).write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(WorkloadError, match=f"{PEER_SERVER} does not listen"), servers(str(built), 1, 1):
        pass


def test_the_recipe_runs_where_it_is_asked_for_and_says_what_it_needs(built: Path) -> None:
    assert PEERS not in recipe_names()
    with pytest.raises(WorkloadError, match=r"give --llama-cpp DIR; to build them.*ggml-rpc-server llama-completion"):
        points(read_recipe(PEERS))
    os.remove(built / "bin" / PEERS_DRAFT)
    with pytest.raises(WorkloadError, match=f'no program "{PEERS_DRAFT}"'):
        select([PEERS], Wish(llama_cpp=str(built)))


@pytest.mark.parametrize(
    ("folder", "cores", "said"),
    [(None, 0.5, "--llama-cpp DIR"), ("here", float("nan"), "node_cores = nan: expected 0.01 to 1024")],
)
def test_nodes_that_cannot_be_are_refused(folder: str | None, cores: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ArtifactOptions(llama_cpp=folder, node_cores=cores).nodes()


def test_both_sides_run_in_turns(built: Path) -> None:
    ours = LiveCell("iterative", {}, PROMPT, 0.0, 0, LIVE)
    theirs = ProgramCell(PEERS_PLAIN, [], {}, PROMPT, 0.0, 0, LIVE, Artifact(str(built), ""))
    cells = [ours, theirs, msgspec.structs.replace(ours, repeat=1), msgspec.structs.replace(theirs, repeat=1)]
    found = list(records_of(cells, 1, None))
    assert [record.error for record in found] == [""] * 4
    assert [record.trial and record.trial.strategy for record in found] == ["iterative", PEERS_PLAIN] * 2


def test_a_recipe_of_ones_own_may_have_them_too(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs pipeinfer[llamacpp]")
    text = (asset("reproduce") / "peers.toml").read_text().replace("builtin:target-100m", "builtin:target")
    (tmp_path / "mine.toml").write_text(text)
    found = select([str(tmp_path / "mine.toml")], Wish(llama_cpp=str(built))).recipes
    assert [recipe.name for recipe in found] == ["mine"]
    assert any(isinstance(point.cell, ProgramCell) for point in points(found[0]))


def test_a_folder_is_exported_as_it_is_to_be_quantised() -> None:
    pytest.importorskip("llama_cpp", reason="needs pipeinfer[llamacpp]")
    folder = str(asset("workloads/builtin/draft"))
    plain, folder_plain, small = gguf_of("builtin:draft"), gguf_of(folder), gguf_of(folder, "q8_0")
    assert plain == folder_plain != small
    assert Path(small).stat().st_size < Path(plain).stat().st_size


def test_both_sides_read_the_same_files(built: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs pipeinfer[llamacpp]")
    recipe = read_recipe(PEERS)
    assert recipe.live is not None
    small = msgspec.structs.replace(recipe, live=msgspec.structs.replace(recipe.live, target="builtin:target"))
    found = with_peers(small, str(built))
    assert found.live is not None
    assert Path(found.live.target).suffix == Path(found.live.draft).suffix == ".gguf"
    theirs = [point.cell for point in points(found) if isinstance(point.cell, ProgramCell)]
    assert {cell.live.target for cell in theirs} == {found.live.target}
    assert prompt_named(theirs[0].prompt).text
