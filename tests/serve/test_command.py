"""`pipeinfer serve` as people run it: the documentation's lines, its mistakes, and how it ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from pipeinfer.commands.options import ClusterOptions
from pipeinfer.commands.serve import ServerOptions, _spares, with_filed
from pipeinfer.serve.server import listen

sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import alive, piped, ranks_of, start

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
EMULATED = ["--backend", "emulated", "--backend-option", "layers=4", "--nodes", "2", "--strategy", "iterative"]
PATIENCE_S = 60.0


@contextmanager
def server(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process and where it says that it serves."""
    process = start("serve", "--port", "0", *arguments)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        said = re.fullmatch(r"serving (\S+) at (http://127\.0\.0\.1:\d+)\n", line)
        assert said, (line, process.communicate(timeout=PATIENCE_S)[1])
        yield process, said[2]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(*command: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_page_s_lines_work() -> None:
    lines = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ").splitlines()
    asked = [line.removeprefix("$ ") for line in lines if line.startswith("$ curl")]
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "$ pipeinfer serve --port 8000" in lines
    with server() as (_, url):
        answers = []
        for line in asked:
            words = shlex.split(line.replace("http://127.0.0.1:8000", url))
            code, output, errors = run(*words, "-sS", "--fail")
            assert code == 0, errors
            answers.append(output)
        text, stream, models, health, metrics = answers
        assert json.loads(text)["choices"][0]["finish_reason"] == "length"
        assert stream.endswith("data: [DONE]\n\n")
        assert json.loads(models)["data"][0]["id"] == "builtin:target"
        assert json.loads(health) == {"status": "ok"}
        assert "vllm:spec_decode_num_drafts_total" in metrics
        pytest.importorskip("openai")
        written = run(sys.executable, "-c", snippet.replace("http://127.0.0.1:8000", url))
        assert written == (0, json.loads(text)["choices"][0]["text"], "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_it_ends_when_it_is_told_to_and_so_do_its_ranks(number: int, code: int) -> None:
    with server(*EMULATED) as (process, _):
        ranks = ranks_of(process.pid)
        assert len(ranks) == 2
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (code, "")
        assert not any(map(alive, ranks.values()))


def test_a_stream_pauses_while_a_lost_rank_is_replaced_and_says_so(tmp_path: Path) -> None:
    log = tmp_path / "events"
    with server(*EMULATED, "--backend-option", "layer_s=0.004", "--log", str(log)) as (process, url):
        fields = {"prompt": "a b", "max_tokens": 60, "temperature": 0}
        whole = json.loads(urlopen(asking(url, fields), timeout=PATIENCE_S).read())["choices"][0]["text"]
        ranks = ranks_of(process.pid)
        with urlopen(asking(url, {**fields, "stream": True}), timeout=PATIENCE_S) as stream:
            events = [stream.readline().decode() for _ in range(10)]
            os.kill(ranks[1], signal.SIGKILL)
            events += stream.read().decode().splitlines(keepends=True)
        chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
        comments = [event.split(":")[1] for event in events if event.startswith(":")]
        assert comments == [" paused", " resumed"]
        assert json.loads(urlopen(f"{url}/health", timeout=PATIENCE_S).read()) == {"status": "ok"}
        anew = ranks_of(process.pid)
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert not any(map(alive, {*ranks.values(), *anew.values()}))
    who = rf"lost rank 1: target layers 2-3 on \S+ \(pid {ranks[1]}\): killed by SIGKILL"
    assert re.search(rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ {who}", errors)
    first, second = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    assert first["after"] == ""
    assert re.match(who, second["after"])
    assert second["now"] > first["now"] >= 0
    replayed = piped("replay", str(log))
    assert replayed.returncode == 0
    assert b"effects, the same as then" in replayed.stdout


def asking(url: str, fields: dict[str, object]) -> Request:
    return Request(f"{url}/v1/completions", json.dumps(fields).encode(), {"content-type": "application/json"})


def refused(*arguments: str) -> str:
    process = start("serve", *arguments)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (2, "")
    assert errors.count("\n") == 1
    return str(errors)


def test_a_cluster_file_names_spares_and_says_whether_to_recover(tmp_path: Path) -> None:
    file = tmp_path / "rack.toml"

    def read(text: str, **given: Any) -> tuple[bool | None, tuple[str, ...]]:
        file.write_text(text)
        cluster = ClusterOptions(cluster_file=file)
        server = with_filed(ServerOptions(**given), cluster.filed())
        return server.recover, _spares(server, cluster.settings().workers)

    rack = 'workers = ["tcp://10.0.0.1:5", "tcp://10.0.0.2:5"]\nspares = ["tcp://10.0.0.3:5", " tcp://10.0.0.4:5"]\n'
    assert read(rack) == (True, ("tcp://10.0.0.3:5", "tcp://10.0.0.4:5"))
    assert read(rack, spares="tcp://10.0.0.9:5") == (True, ("tcp://10.0.0.9:5",))
    assert read(rack, recover=False) == (False, ())
    assert read("recover = false") == (False, ())
    assert read("recover = false", recover=True) == (True, ())
    assert read("") == (True, ())
    for wrong in (rack + "recover = false", rack.partition("\n")[2]):
        with pytest.raises(ValueError, match="--spares take the places of lost --workers"):
            read(wrong)
    with pytest.raises(ValueError, match='did you mean "spares"'):
        read('spare = ["tcp://10.0.0.3:5"]')


def test_mistakes_are_one_line() -> None:
    assert "--spares take the places of lost --workers" in refused("--spares", "tcp://127.0.0.1:9")
    workers = ["--workers", "tcp://127.0.0.1:9,tcp://127.0.0.1:10"]
    assert 'name each worker once, and "tcp://127.0.0.1:9" twice' in refused(*workers, "--spares", "tcp://127.0.0.1:9")
    for other in ("tls://127.0.0.1:11", "nonsense", ""):
        assert f'of the transport of --workers: one like tcp://10.0.0.7:5555, not "{other}"' in refused(
            *workers, "--spares", other
        )
    assert "is reached from other machines: give them a key with --api-key" in refused("--host", "0.0.0.0")
    with listen("127.0.0.1", 0, None) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused("--port", port)


def test_without_its_packages_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['starlette'] = None; from pipeinfer.cli import run; sys.exit(run(['serve']))"
    status, output, errors = run(sys.executable, "-c", code)
    assert (status, output) == (2, "")
    assert "starlette is missing, which serving takes: pip install 'pipeinfer[serve]'" in errors
