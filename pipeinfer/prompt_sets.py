"""Prompts by name: the suite's own texts, sets of `workloads/prompts/`, and public sets in a file that the user has."""

import gzip
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeinfer.assets import asset
from pipeinfer.workload import FileEntry, WorkloadError, load, pick, suggest

SUITE = "builtin"
"""The set whose prompts need no set before their name."""


class Prompt(FileEntry, frozen=True):
    """`name` is told apart from those of other sets by `SET:` before it."""

    name: str
    text: str
    category: str = ""


class _Set(FileEntry, frozen=True):
    """A file of workloads/: `licence` is that of the texts, in full where they are not this project's; `category` that
    of prompts which have none of their own."""

    title: str = ""
    source: str = ""
    licence: str = ""
    category: str = ""
    prompt: tuple[Prompt, ...] = ()


class SetLayout(NamedTuple):
    """How a public set is written down: fields by which it is known, and those of name, text and category."""

    title: str
    known_by: frozenset[str]
    name: str
    text: str
    category: str = ""


LAYOUTS = [
    SetLayout("HumanEval", frozenset({"task_id", "prompt", "entry_point"}), "task_id", "prompt"),
    SetLayout("MBPP", frozenset({"task_id", "text", "test_list"}), "task_id", "text"),
    SetLayout("MBPP", frozenset({"task_id", "prompt", "test_list"}), "task_id", "prompt"),  # its sanitized part
    SetLayout("MATH-500", frozenset({"problem", "subject"}), "unique_id", "problem", "subject"),
    SetLayout("GSM8K", frozenset({"question", "answer"}), "", "question"),
    SetLayout("MT-Bench", frozenset({"question_id", "category", "turns"}), "question_id", "turns", "category"),
]
"""Public sets as their makers distribute them. Of several turns the first is the prompt."""

PLACEHOLDER = re.compile(
    r"(todo|tbd|placeholder|prompt|question|text|test|foo|bar|xxx+|hello,? world|lorem ipsum.*|\.\.\.|…"
    r"|<[^<>]*>|\{[^{}]*\}|\[[^\[\]]*\])?[\W\d]*",
    re.IGNORECASE | re.DOTALL,
)
"""What is no text that somebody would have continued, all of it."""

SCRIPTS = 4
"""Kinds of writing that no one text mixes."""


def suite() -> list[str]:
    """The texts of the built-in pair's prompts, in order."""
    return [prompt.text for prompt in _known(SUITE).values()]


def prompt_named(name: str) -> Prompt:
    """The prompt NAME of the suite, SET:NAME of a set or FILE:NAME of a file. Raises WorkloadError."""
    where, _, short = name.rpartition(":")
    found = _known(where or SUITE)
    return pick(found, short, f"prompt {where}:".rstrip(":") if where else "prompt")


def expanded(word: str) -> list[str]:
    """Names of prompts: a prompt's own, or those of a set or file; `:COUNT` after these takes as many, evenly spread.
    Raises WorkloadError."""
    where, count = word, 0
    if (counted := re.fullmatch(r"(.*):(\d+)", word)) and _is_set(counted[1]):
        where, count = counted[1], int(counted[2])
    if not _is_set(where):
        prompt_named(word)
        return [word]
    names = [name if where == SUITE else f"{where}:{name}" for name in _known(where)]
    if len(names) < count:
        raise WorkloadError(f"{word}: there are {len(names)} prompts in {where}")
    return [names[at * len(names) // count] for at in range(count)] if count else names


def sets() -> list[str]:
    """The names of sets."""
    return [SUITE, *sorted(path.stem for path in asset("workloads/prompts").glob("*.toml"))]


def looks_random(text: str) -> bool:
    """Whether a text is like decoded random tokens: pieces of characters, or more kinds of writing than one text has.

    Drafts are hardly ever right on such a text, and what is measured on it says nothing of others.
    """
    scripts = {unicodedata.name(letter, "").partition(" ")[0] for letter in set(text) if letter.isalpha()}
    return "\N{REPLACEMENT CHARACTER}" in text or len(scripts) >= SCRIPTS


def _is_set(where: str) -> bool:
    return where in sets() or Path(where).name.endswith((".json", ".jsonl", ".jsonl.gz"))


@cache
def _known(where: str) -> dict[str, Prompt]:
    """All prompts of a set or file, by name."""
    if where not in sets() and not _is_set(where):
        raise WorkloadError(f'no set of prompts "{where}"{suggest(where, sets())}; or give a file, .jsonl or .json')
    if where in sets():
        path = asset("workloads/builtin/prompts.toml" if where == SUITE else f"workloads/prompts/{where}.toml")
        whole = load(path, _Set)
        found = [msgspec.structs.replace(one, category=one.category or whole.category) for one in whole.prompt]
    else:
        found = _read_public(Path(where))
    return {prompt.name: prompt for prompt in found}


# Public sets


def _read_public(path: Path) -> list[Prompt]:
    rows = _rows(path)
    layout = next((one for one in LAYOUTS if rows and one.known_by <= rows[0].keys()), None)
    if layout is None:
        wanted = "; ".join(f"{one.title}: {', '.join(sorted(one.known_by))}" for one in LAYOUTS)
        came = ", ".join(sorted(rows[0])) if rows else "nothing"
        raise WorkloadError(f"{path}: expected objects with the fields of a public set ({wanted}); came {came}")
    found = [_of_row(row, layout, number, f"{path}, prompt {number}") for number, row in enumerate(rows, start=1)]
    for what in ("name", "text"):
        counts = Counter(getattr(prompt, what) for prompt in found)
        if (often := counts.most_common(1)[0])[1] > 1:
            raise WorkloadError(f"{path}: a set has each prompt once, and {often[0][:40]!r} is there {often[1]} times")
    return found


def _of_row(row: dict[str, Any], layout: SetLayout, number: int, where: str) -> Prompt:
    """Raises WorkloadError: token ids, or a placeholder."""
    text = row.get(layout.text)
    if isinstance(text, list) and text and isinstance(text[0], str):
        text = text[0]
    if not isinstance(text, str):
        came = msgspec.json.encode(text).decode()[:40]
        raise WorkloadError(f'{where}: expected text in "{layout.text}", came {came}')
    if PLACEHOLDER.fullmatch(text.strip()):
        raise WorkloadError(f"{where}: {text.strip()[:40]!r} is a placeholder and no prompt: take the set's own file")
    name = str(row.get(layout.name, number)).replace(":", "-")
    return Prompt(name, text, str(row.get(layout.category) or layout.title))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if path.suffix == ".json":
            return msgspec.json.decode(content, type=list[dict[str, Any]])
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in content.splitlines() if line.strip()]
    except OSError as problem:
        raise WorkloadError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except (ValueError, EOFError) as problem:
        raise WorkloadError(f"{path}: not a file of prompts: {problem}") from None
