"""The options of commands: told on one screen, declared once, and in a cluster file as well."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeinfer.cli import app, run
from pipeinfer.cluster.settings import Settings, read_settings
from pipeinfer.commands.options import ClusterOptions

COLUMNS, LINES = 100, 60
"""Of a screen."""

Generate = Callable[..., dict[str, object]]


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Generate:
    """Runs `pipeinfer generate x ARGUMENTS --json` and gives its object."""

    def generate(*arguments: object) -> dict[str, object]:
        code = run(["generate", "x", "--json", *map(str, arguments)])
        output, errors = capsys.readouterr()
        assert code == 0, errors
        found: dict[str, object] = json.loads(output)
        return found

    return generate


def commands() -> list[str]:
    return [command.callback.__name__ for command in app.registered_commands if command.callback is not None]


@pytest.mark.parametrize("command", commands())
def test_the_help_of_a_command_fits_one_screen(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert run([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= LINES
    assert all(len(line) <= COLUMNS for line in lines)


def test_options_come_in_panels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    run(["generate", "--help"])
    output = capsys.readouterr().out
    for panel in ("Text", "Models", "Pipeline", "Sampling", "Output"):
        assert f"─ {panel} ─" in output


@pytest.mark.parametrize("command", commands())
def test_every_option_is_in_a_panel_of_its_subject(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    run([command, "--help"])
    (_, _, others) = capsys.readouterr().out.partition("─ Options ─")
    assert re.findall(r"--[a-z-]+", others.partition("╰")[0]) == ["--help"]


def test_the_shell_completes_commands() -> None:
    words = {"_PIPEINFER_COMPLETE": "complete_bash", "COMP_WORDS": "pipeinfer sim", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "from pipeinfer.cli import main; main()"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["simulate"]


def test_every_setting_is_an_option() -> None:
    options = set(ClusterOptions.__dataclass_fields__) - {"cluster_file", "backend_option"}
    assert options == set(Settings.__struct_fields__) - {"backend_options"}


# The cluster file ----------------------------------------------------------------------------------------------------

FILE = """
backend = "emulated"
transport = "inproc"
layers = "1,1,2/1"
latency = "0.1ms"

[backend_options]
layers = 4
layer_s = 0.001
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(FILE)
    return path


def test_a_cluster_file_says_what_options_say(file: Path, generate: Generate) -> None:
    result = generate("--cluster-file", file, "--tokens", 4)
    assert [rank["layers"] for rank in result["ranks"]] == [[0, 1], [1, 2], [2, 4], [0, 1]]  # type: ignore[attr-defined]
    assert result["fidelity"] == "emulated"


def test_options_win_over_the_file(file: Path, generate: Generate) -> None:
    result = generate("--cluster-file", file, "--tokens", 4, "--layers", "2,2", "--strategy", "iterative")
    assert [rank["layers"] for rank in result["ranks"]] == [[0, 2], [2, 4]]  # type: ignore[attr-defined]
    given = ClusterOptions(cluster_file=file, backend_option=["layers=8"]).settings()
    assert given.backend_options == {"layers": 8, "layer_s": 0.001}


def test_options_of_another_backend_are_not_taken_over(file: Path) -> None:
    assert ClusterOptions(cluster_file=file, backend="numpy").settings().backend_options == {}


def test_paths_are_from_the_file_on(file: Path) -> None:
    file.write_text('workers = ["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555"]\nkey = "cluster.key"\n')
    settings = ClusterOptions(cluster_file=file).settings()
    assert settings.workers == ("tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555")
    assert settings.key == str(file.parent / "cluster.key")
    assert settings.plan("tcp", 4, drafts=True).stages == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("latencies = 3", 'cluster.toml: unknown key "latencies"; did you mean "latency"? there are: '),
        ("nodes = 'four'", "cluster.toml: nodes: expected `int | null`"),
        ("nodes = 0", "cluster.toml: nodes = 0: expected 1 or more"),
        ("layers = ", "cluster.toml: not TOML"),
        ("key = 'k'", "--workers"),
        ("key = '~nobody-here/k'", "expected a home folder for ~nobody-here/k"),
        ("cpu_share = 7.0", "cpu_share = 7.0: expected 0.01 to 1"),
    ],
)
def test_what_a_cluster_file_cannot_say_is_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    file.write_text(content)
    assert run(["generate", "x", "--cluster-file", str(file)]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_reproduce_takes_what_its_recipes_leave_open(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out [/b]"
    assert run(["reproduce", "timeline", "--cluster-file", str(file), "--replot", "--out", str(out)]) == 0
    assert f"note: {file}: the recipes themselves say what latency, layers, transport is" in capsys.readouterr().out
    file.write_text('workers = ["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555"]')
    assert run(["reproduce", "live", "--cluster-file", str(file), "--out", str(out)]) == 2
    assert "they need their key file, so give --key as well" in capsys.readouterr().err


def test_a_cluster_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", "--cluster-file", str(tmp_path / "no.toml")]) == 2
    assert "no.toml: cannot be read: No such file or directory" in capsys.readouterr().err


def test_the_documented_file_is_one(file: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    file.write_text(example)
    settings = ClusterOptions(cluster_file=file).settings()
    assert (settings.backend, settings.backend_options, len(settings.workers)) == ("llamacpp", {"threads": 8}, 4)
    told = re.search(r"Its keys are.*?`backend_options`", page, re.DOTALL)
    assert told is not None
    assert set(Settings.__struct_fields__) <= set(re.findall(r"`(\w+)`", told[0]))


def test_only_what_is_said_is_read(file: Path) -> None:
    assert read_settings(file).keys() == {"backend", "transport", "layers", "latency", "backend_options"}


# What a full disk may not take ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("option", ["--log", "--trace"])
def test_a_full_disk_does_not_cost_the_text(file: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert run(["generate", "x", "--cluster-file", str(file), "--tokens", "4", "--json", option, "/dev/full"]) == 2
    output, errors = capsys.readouterr()
    assert len(json.loads(output)["token_ids"]) == 4
    assert errors == "error: No space left on device: /dev/full\n"


def test_a_path_in_quotes_is_read_as_the_shell_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cluster.toml").write_text(FILE)
    assert run(["generate", "x", "--cluster-file", "~/cluster.toml", "--tokens", "2", "--trace", "~/trace.json"]) == 0
    assert json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"]
    capsys.readouterr()
    for option in ("--file", "--key", "--profile", "--target"):
        assert run(["generate", "--tokens", "2", option, "~nobody-here/x"]) == 2
        assert "home folder for ~nobody-here/x" in capsys.readouterr().err
