"""What commands print and read: user text is literal, encodings cost no result, the same bytes are the same prompt."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import piped

from pipeinfer.cli import run as run_line
from pipeinfer.commands.output import console, json_line
from pipeinfer.commands.view import SHOWN, starting
from pipeinfer.testing.models import write_llama

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "pipeinfer"]
QUICK = ["--backend", "emulated", "--transport", "inproc", "--nodes", "2", "--tokens", "4"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `pipeinfer ARGUMENTS` in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        return run_line([str(argument) for argument in arguments]), *capsys.readouterr()

    return run


def pipeinfer(*arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The same in a process of its own; variables are added to this one's."""
    variables = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, timeout=120, check=False, env=variables, **options
    )


def assert_one_line(done: subprocess.CompletedProcess[bytes], *said: str) -> None:
    errors = done.stderr.decode()
    assert done.returncode == 2, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    for words in said:
        assert words in errors


# User text is never markup -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results in a folder whose name a markup language would take for the end of something."""
    folder = tmp_path_factory.mktemp("results") / "out [/b] x"
    assert piped("reproduce", "timeline", "--jobs", "1", "--out", str(folder)).returncode == 0
    return folder


def test_reproduce_names_its_folder(timeline: Path, run: Run) -> None:
    code, output, _ = run("reproduce", "timeline", "--replot", "--out", timeline)
    assert code == 0
    assert f"{timeline}/trials.jsonl\n" in output


@pytest.mark.parametrize("name", ["head[v2]", "x [/run]", "[red]", ":warning:", "x $y_{$"])
def test_compare_names_what_it_compares(timeline: Path, tmp_path: Path, run: Run, name: str) -> None:
    head = tmp_path / name
    head.mkdir(parents=True)
    (head / "trials.jsonl").write_bytes((timeline / "trials.jsonl").read_bytes())
    code, output, _ = run("compare", timeline, head, "--plot", tmp_path / "ratios")
    assert code == 0
    assert output.endswith(f"rows speak against {head}\n")
    assert (tmp_path / "ratios.svg").exists()


def test_a_cluster_of_any_name_and_title_is_simulated(tmp_path: Path, run: Run) -> None:
    own = tmp_path / "mine [b].toml"
    own.write_text((ROOT / "workloads" / "clusters.toml").read_text().replace('title = "', 'title = "[/i] '))
    code, output, errors = run("simulate", "--cluster", f"{own}:haswell-gigabit", "--no-sweep", "--tokens", "4")
    assert code == 0, errors
    assert "[/i] " in output


def test_tables_and_lines_are_literal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("[b]", title="[/i] :smile:")
    table.add_row("[/x] :smile:")
    console().print(table, "[/y]")
    output = capsys.readouterr().out
    for text in ("[b]", "[/i] :smile:", "[/x] :smile:", "[/y]"):
        assert text in output


MARKUP = {"Console", "from_markup", "render_markup", "secho"}
"""What reads markup, or writes without `pipeinfer.commands.output`."""


def test_nothing_else_reads_markup() -> None:
    for path in [*ROOT.glob("pipeinfer/**/*.py"), *ROOT.glob("backends/pipeinfer_*/**/*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        for call in calls:
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            assert name not in MARKUP or path.name == "output.py", f"{path}:{call.lineno}: {name}"
            if name == "TextColumn":
                assert any(word.arg == "markup" for word in call.keywords), f"{path}:{call.lineno}: markup is on"


def test_what_a_terminal_would_obey_is_shown(run: Run) -> None:
    assert "a\x1b[2Jb\nc\td".translate(SHOWN) == "a\\x1b[2Jb\nc\td"
    assert "\\x1b[2J" in run("compare", "no\x1b[2Jfile", "x")[2]


def test_starting_says_so_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    with starting():
        pass
    assert capsys.readouterr() == ("", "")


# Output that is not UTF-8 --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that generate text beyond ASCII."""
    folder = write_llama(tmp_path_factory.mktemp("model"))
    return ["generate", "é", "--target", str(folder), "--draft", str(folder), "--transport", "inproc", "--tokens", "24"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_text_loses_only_what_the_output_lacks(babbler: list[str], encoding: str) -> None:
    whole = json.loads(piped(*babbler, "--json").stdout)
    assert not whole["text"].isascii()
    done = pipeinfer(*babbler, env={"PYTHONIOENCODING": encoding})
    assert done.stdout == (whole["text"] + "\n").encode(encoding, "backslashreplace")
    done = piped(*babbler, "--json", encoding=encoding)
    assert done.returncode == 0
    assert json.loads(done.stdout.decode(encoding))["text"] == whole["text"]


def test_json_of_names_beyond_ascii(timeline: Path, tmp_path: Path) -> None:
    named = tmp_path / os.fsdecode("é\U0001f600".encode() + b"\xe9")
    named.mkdir()
    (named / "trials.jsonl").write_bytes((timeline / "trials.jsonl").read_bytes())
    compared = ["compare", str(timeline), os.fsencode(named)]
    done = pipeinfer(*compared, "--json", env={"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout)["head"] == str(named)
    for encoding in ("ascii", "utf-8"):
        assert json.loads(piped(*compared, "--json", encoding=encoding).stdout)["head"] == str(named)
        table = piped(*compared, encoding=encoding)
        assert (table.returncode, table.stderr) == (0, b"")


def test_json_is_json_in_any_encoding() -> None:
    value = {"text": "é\U0001f600", "gain": float("nan")}
    assert json_line(value, "utf-8") == '{"text":"é\U0001f600","gain":null}'
    for encoding in ("ascii", "latin-1"):
        assert json.loads(json_line(value, encoding)) == {"text": "é\U0001f600", "gain": None}
    assert json.loads(json_line({"path": "\udce9"}, "utf-8")) == {"path": "\udce9"}


# Prompts from files and pipes ----------------------------------------------------------------------------------------

PROMPT = "ein  Wort\r\nnoch\reins\n\x85\u2028é".encode()


def prompt_tokens(*arguments: str, by: Callable[..., Any] = piped, **options: Any) -> int:
    model = ["--backend", "numpy", "--strategy", "iterative", "--nodes", "1", "--transport", "inproc", "--tokens", "1"]
    done = by("generate", *arguments, *model, "--json", **options)
    assert done.returncode == 0, done.stderr
    count: int = json.loads(done.stdout)["prompt_tokens"]
    return count


def test_the_same_bytes_are_the_same_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(PROMPT)
    count = prompt_tokens(PROMPT.decode())
    assert prompt_tokens("--file", str(file)) == count
    assert prompt_tokens("--file", "-", input=PROMPT) == count
    strange = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}
    assert prompt_tokens("--file", "-", by=pipeinfer, input=PROMPT, env=strange) == count
    file.write_bytes(b"\xef\xbb\xbf" + PROMPT)
    assert prompt_tokens("--file", str(file)) == count
    assert prompt_tokens("--file", "-", input=file.read_bytes()) == count


def test_a_prompt_that_is_no_text_names_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    for content, at in ((b"caf\xe9 (", 3), (b"\xef\xbb\xbfcaf\xe9 (", 6)):
        file.write_bytes(content)
        said = f"expected UTF-8 text, came byte 0xe9 at offset {at}"
        assert_one_line(piped("generate", "--file", str(file), *QUICK), str(file), said)
        assert_one_line(piped("generate", "--file", "-", *QUICK, input=content), "standard input", said)
        for variables in ({"LC_ALL": "C"}, {"LC_ALL": "POSIX"}):
            done = pipeinfer("generate", "--file", "-", *QUICK, input=content, env=variables)
            assert_one_line(done, "standard input", said)


def test_an_argument_that_is_no_text() -> None:
    said = "expected UTF-8 text, came byte 0xe9 at offset 4"
    assert_one_line(pipeinfer("generate", "éff".encode() + b"\xe9 (", *QUICK), said)
    for option in ("--target", "--draft", "--strategy", "--backend", "--workers", "--layers"):
        assert_one_line(piped("generate", "x", "--tokens", "2", option, b"caf\xe9"))


@pytest.mark.parametrize(("closed", "said"), [("<&-", "standard input: it is closed"), (">&-", "output is closed")])
def test_a_closed_stream_is_one_line(closed: str, said: str) -> None:
    line = " ".join([*COMMAND, "generate", "--file", "-", *QUICK, closed])
    done = subprocess.run(["sh", "-c", line], input=b"x", stderr=subprocess.PIPE, timeout=60, check=False)
    assert_one_line(done, said)


def test_closed_errors_cost_the_errors_only(tmp_path: Path) -> None:
    line = " ".join([*COMMAND, "generate", "x", *QUICK, "--log", str(tmp_path / "log"), "2>&-"])
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60, check=True)
    assert len(done.stdout.split()) == 4
    assert b"Traceback" not in (tmp_path / "log").read_bytes()


# The command line itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--tokenz", "3"], ["--tokenz", "--tokens", "pipeinfer generate --help"]),
        (["generate", "--tokens", "many"], ["--tokens", "integer", "pipeinfer generate --help"]),
        (["reproduze"], ["reproduze", "pipeinfer --help"]),
        (["replay"], ["log", "pipeinfer replay --help"]),
        (["compare", "a", "b", "c [/d]"], ["c [/d]", "pipeinfer compare --help"]),
    ],
)
def test_a_wrong_command_line_is_one_line(run: Run, arguments: list[str], said: list[str]) -> None:
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    for words in said:
        assert words in errors


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [*COMMAND, "generate", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("arguments", [["plugins", "--json"], ["plugins"], ["--help"], ["generate", "x", *QUICK]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert_one_line(done, "No space left on device")
