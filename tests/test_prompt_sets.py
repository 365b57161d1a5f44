"""Prompts: sets by name, public sets as their makers write them down, and what is no prompt."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pipeinfer.assets import asset
from pipeinfer.cli import run
from pipeinfer.prompt_sets import PLACEHOLDER, expanded, looks_random, prompt_named, sets, suite
from pipeinfer.study.selection import Wish, select
from pipeinfer.workload import WorkloadError, load

ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "HumanEval": ({"task_id": "HumanEval/0", "prompt": "def one():\n", "entry_point": "one", "test": ""},
                  "HumanEval/0", "HumanEval"),
    "MBPP": ({"task_id": 11, "text": "Write a function.", "code": "", "test_list": []}, "11", "MBPP"),
    "MBPP, sanitized": ({"task_id": 2, "prompt": "Write another.", "code": "", "test_list": []}, "2", "MBPP"),
    "GSM8K": ({"question": "How many apples are left?", "answer": "#### 3"}, "1", "GSM8K"),
    "MATH-500": ({"problem": "What is $2+2$?", "solution": "", "answer": "4", "subject": "Algebra",
                  "unique_id": "test/algebra/1.json"}, "test/algebra/1.json", "Algebra"),
    "MT-Bench": ({"question_id": 81, "category": "writing", "turns": ["Write a letter.", "Shorten it."]},
                 "81", "writing"),
}  # fmt: skip
"""A row as each set's file has it, and the name and category that it gets."""


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("layout", ROWS)
def test_a_public_set_is_read_as_its_makers_write_it(layout: str, tmp_path: Path) -> None:
    row, name, category = ROWS[layout]
    path = write(tmp_path / "set.jsonl", row)
    packed, whole = tmp_path / "packed.jsonl.gz", tmp_path / "set.json"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    whole.write_text(json.dumps([row]))
    for file in (path, packed, whole):
        assert expanded(str(file)) == [f"{file}:{name}"]
        found = prompt_named(f"{file}:{name}")
        assert (found.name, found.category) == (name, category)
        assert found.text in (row.get("prompt"), row.get("text"), row.get("question"), row.get("problem"),
                              row.get("turns", [None])[0])  # fmt: skip


def test_some_of_a_set_are_spread_over_it(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", *({"question": f"Question number {n}?", "answer": ""} for n in range(1, 11)))
    assert [name.rpartition(":")[2] for name in expanded(f"{path}:5")] == ["1", "3", "5", "7", "9"]
    assert expanded("builtin:2") == ["merge-sorted", expanded("builtin")[10]]
    with pytest.raises(WorkloadError, match="there are 10 prompts"):
        expanded(f"{path}:11")


@pytest.mark.parametrize(
    "text", ["", "  \n", "TODO", "lorem ipsum dolor sit amet", "Hello, world!", "<your prompt here>", "prompt 17",
             "{text}", "...", "Question 3:"],
)  # fmt: skip
def test_a_placeholder_is_refused(text: str, tmp_path: Path) -> None:
    rows = [{"question": question, "answer": ""} for question in ("A real one, is it?", text)]
    path = write(tmp_path / "set.jsonl", *rows)
    with pytest.raises(WorkloadError, match=r"set.jsonl, prompt 2: .* is a placeholder and no prompt"):
        expanded(str(path))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": [17, 4, 99], "answer": ""}], r'prompt 1: expected text in "question", came \[17,4,99\]'),
        ([{"question": "Same?", "answer": ""}] * 2, "'Same\\?' is there 2 times"),
        ([{"instruction": "Do it"}], "expected objects with the fields of a public set .* came instruction"),
        ([], "came nothing"),
    ],
)
def test_what_is_no_set_of_prompts_is_one_line(rows: list[dict[str, Any]], words: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=words):
        expanded(str(write(tmp_path / "set.jsonl", *rows)))


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text('{"question": ')
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(b"{}")[:9])
    files = {"no.jsonl": "cannot be read", "half.jsonl": "not a file", "half.jsonl.gz": "not a file"}
    for name, words in files.items():
        with pytest.raises(WorkloadError, match=words):
            expanded(str(tmp_path / name))
    with pytest.raises(WorkloadError, match=r'no prompt "merge-sort".*did you mean "merge-sorted"'):
        expanded("merge-sort")
    with pytest.raises(WorkloadError, match='no set of prompts "writen"; did you mean "written"'):
        expanded("writen:tides")


def test_sets_that_are_shipped_say_whose_they_are_and_hold_no_placeholder() -> None:
    assert sets() == ["builtin", "humaneval", "written"]
    for name in sets():
        names = expanded(name)
        assert len(set(names)) == len(names) > 4
        for prompt in map(prompt_named, names):
            assert prompt.category
            assert not PLACEHOLDER.fullmatch(prompt.text)
            assert not looks_random(prompt.text)
    for path in asset("workloads/prompts").glob("*.toml"):
        said = load(path, dict[str, Any])
        assert said["title"]
        assert said["source"]
        assert "MIT" in said["licence"]
    assert "Copyright (c) OpenAI" in load(asset("workloads/prompts/humaneval.toml"), dict[str, Any])["licence"]
    assert [prompt_named(name).text for name in expanded("builtin")] == suite()


def test_random_tokens_are_told_from_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(asset("workloads/builtin/target/tokenizer.json")))
    random = tokenizer.decode([(at * 7919) % 2048 for at in range(128)])
    assert looks_random(random)
    assert looks_random("das Haus дом 家 집 بيت")
    assert not looks_random("Übersetze α = 2π ins Deutsche: the house is 5 m high")
    path = write(tmp_path / "set.jsonl", {"question": random, "answer": ""}, {"question": "How are you?", "answer": ""})
    recipes, notes = select(["live"], Wish(live={"prompts": expanded(str(path))}))
    assert recipes[0].live is not None
    assert recipes[0].live.prompts == expanded(str(path))
    assert [note for note in notes if "1 of 2 prompts look like decoded random tokens" in note]
    assert not select(["live"], Wish()).notes


def test_a_backend_without_text_is_said_to_have_none() -> None:
    _, notes = select(["live"], Wish(live={"backend": "emulated"}))
    assert notes == ["live: the emulated backend has no text; its drafts are right as often as it was told"]


def test_prompts_are_of_what_is_really_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "timeline", "--prompts", "written", "--out", str(tmp_path)]) == 2
    told = "error: --prompts written: nothing of these recipes really runs a model: try live\n"
    assert capsys.readouterr().err == told
