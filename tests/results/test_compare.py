"""Comparing results: what changed, what is noise, and what cannot be compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeinfer.cli import run as command_line
from pipeinfer.results.compare import compare
from pipeinfer.results.compare.judge import EVERY_CELL, FEWEST_PAIRS
from pipeinfer.results.records import Record, Store, encode
from pipeinfer.results.trial import Trial
from pipeinfer.workload import WorkloadError

CELLS = ("iterative", "pipeinfer")
SPEEDS = {"iterative": 20.0, "pipeinfer": 45.0}
TOKENS = 32


def trial(strategy: str, speed: float, tokens: Sequence[int] = range(TOKENS)) -> Trial:
    emit_s = tuple(0.1 + i / speed for i in range(len(tokens)))
    return Trial(strategy, "emulated", 8, tuple(tokens), emit_s, "length", (), ())


def record(strategy: str, result: Trial | None, repeat: int = 0, **other: Any) -> Record:
    config = {"strategy": strategy, "live": {"tokens": TOKENS, **other.pop("live", {})}, "repeat": repeat}
    return msgspec.structs.replace(
        Record(f"{strategy} {repeat}", config, "emulated", 0, result, environment={"pipeinfer": "1", "cores": 2}),
        **other,
    )


def noisy(factor: float = 1.0, repeats: int = 15, seed: int = 0) -> list[Record]:
    """A machine on which any repetition may take up to a third longer."""
    noise = np.random.Generator(np.random.Philox(key=[0, seed]))
    return [
        record(strategy, trial(strategy, SPEEDS[strategy] * factor / (1 + noise.random() ** 3 / 3)), repeat)
        for repeat in range(repeats)
        for strategy in CELLS
    ]


def write(path: Path, records: Sequence[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(encode, records)))
    return path


def verdicts(base: Path, head: Path, **options: Any) -> dict[tuple[str, str], str]:
    return {(row.cell, row.metric): row.verdict for row in compare(base, head, **options).rows}


# Verdicts


def test_the_same_code_passes_twenty_times_on_a_noisy_machine(tmp_path: Path) -> None:
    for seed in range(20):
        base = write(tmp_path / "base.jsonl", noisy(seed=2 * seed))
        head = write(tmp_path / "head.jsonl", noisy(seed=2 * seed + 1))
        assert compare(base, head).worse == []


def test_ten_percent_slower_is_a_regression_and_faster_an_improvement(tmp_path: Path) -> None:
    usual, slower = write(tmp_path / "usual.jsonl", noisy()), write(tmp_path / "slower.jsonl", noisy(1 / 1.1, seed=1))
    for cell in (*CELLS, EVERY_CELL):
        assert verdicts(usual, slower)[cell, "tokens/s"] == "regression"
        assert verdicts(slower, usual)[cell, "tokens/s"] == "improvement"


def test_a_change_below_the_threshold_does_not_count(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", [record("iterative", trial("iterative", 20), i) for i in range(15)])
    head = write(tmp_path / "head.jsonl", [record("iterative", trial("iterative", 19.4), i) for i in range(15)])
    assert verdicts(base, head)["iterative, tokens 32", "tokens/s"] == "no change"
    assert verdicts(base, head, threshold=0.02)["iterative, tokens 32", "tokens/s"] == "regression"


def test_a_ratio_whose_interval_holds_no_change_is_unclear(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", [record("iterative", trial("", 20), i) for i in range(16)])
    head = write(tmp_path / "head.jsonl", [record("iterative", trial("", 24 if i < 5 else 20), i) for i in range(16)])
    assert verdicts(base, head)["iterative, tokens 32", "tokens/s"] == "unclear"


def test_few_repetitions_have_no_verdict_unless_simulated(tmp_path: Path) -> None:
    few = FEWEST_PAIRS - 1
    base, head = write(tmp_path / "base.jsonl", noisy(1, few)), write(tmp_path / "head.jsonl", noisy(0.5, few))
    assert set(verdicts(base, head).values()) == {"too few"}
    simulated = [[msgspec.structs.replace(one, fidelity="sim") for one in noisy(speed, 1)] for speed in (1, 0.5)]
    base, head = write(tmp_path / "base.jsonl", simulated[0]), write(tmp_path / "head.jsonl", simulated[1])
    assert verdicts(base, head)[EVERY_CELL, "tokens/s"] == "regression"


def test_a_wrong_run_has_no_performance(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", noisy())
    wrong = [record(one, trial(one, 100, range(1, TOKENS + 1)), i) for i in range(15) for one in CELLS[:1]]
    failed = [record("pipeinfer", None, error="lost rank 1")]
    comparison = compare(base, write(tmp_path / "head.jsonl", wrong + failed))
    assert [(row.cell, row.verdict) for row in comparison.rows] == [
        ("iterative", "other tokens"),
        ("pipeinfer", "failed"),
    ]
    assert comparison.worse == comparison.rows


def test_a_text_that_parts_at_a_tie_keeps_its_figures(tmp_path: Path) -> None:
    """The gate is that of the table of trials: in coarse arithmetic, and only where the best two were close."""
    near, far = (0.001,) * TOKENS, (3.0,) * TOKENS
    for precision, margins, verdict in (
        ("bfloat16", near, "regression"), ("bfloat16", far, "other tokens"), ("float32", near, "other tokens"),
    ):  # fmt: skip
        sides = [trial("iterative", 20), trial("iterative", 10, [*range(TOKENS - 1), 99])]
        sides = [msgspec.structs.replace(one, precision=precision, margins=margins) for one in sides]
        base, head = (
            write(tmp_path / f"{name}.jsonl", [record("iterative", side, i) for i in range(FEWEST_PAIRS)])
            for name, side in zip(("base", "head"), sides, strict=True)
        )
        assert verdict in verdicts(base, head).values()


def test_results_without_a_trial_have_failed(tmp_path: Path) -> None:
    failed = write(tmp_path / "failed.jsonl", [record("iterative", None, error="lost rank 1")])
    assert [row.verdict for row in compare(failed, failed).rows] == ["failed"]


# What cannot be compared


def test_different_workloads_are_refused_with_what_differs(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", noisy(1, 1))
    longer = write(tmp_path / "longer.jsonl", [record(one, trial(one, 20), live={"tokens": 64}) for one in CELLS])
    with pytest.raises(WorkloadError, match=r"live\.tokens is 32 in .*base\.jsonl and 64 in .*longer\.jsonl$"):
        compare(base, longer)


def test_cells_of_one_side_only_are_refused_or_left_out(tmp_path: Path) -> None:
    base, head = write(tmp_path / "base.jsonl", noisy()), write(tmp_path / "head.jsonl", noisy()[::2])
    with pytest.raises(WorkloadError, match=r"head\.jsonl lacks 1 cells of .*\(--common leaves them out\)"):
        compare(base, head)
    comparison = compare(base, head, common=True)
    assert {row.cell for row in comparison.rows} == {"iterative, tokens 32"}
    assert "left out: 1 cells" in comparison.notes[0]


def test_equal_names_must_stand_for_equal_things(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", [record("iterative", trial("", 20))])
    head = write(tmp_path / "head.jsonl", [record("iterative", trial("", 20), config_hash="other")])
    with pytest.raises(WorkloadError, match="the files of a model have changed"):
        compare(base, head)


def test_a_comparison_across_machines_says_so(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", noisy())
    head = write(tmp_path / "head.jsonl", [msgspec.structs.replace(one, environment={"cores": 64}) for one in noisy()])
    assert "different machines" in compare(base, head).notes[0]


# Files


def test_turns_in_folders_are_read_in_order(tmp_path: Path) -> None:
    for turn in range(12):
        write(tmp_path / "base" / str(turn) / "trials.jsonl", noisy(1 + turn, 1))
        write(tmp_path / "head" / str(turn) / "trials.jsonl", noisy(1 + turn, 1))
    rows = compare(tmp_path / "base", tmp_path / "head").rows
    assert {row.pairs for row in rows} == {12}
    assert all(0.5 < (row.ratio or 0) < 1.6 for row in rows)


def test_half_a_line_at_the_end_is_left_out_and_one_in_the_middle_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", noisy())
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(base.read_bytes() + base.read_bytes()[:100])
    assert compare(base, cut).worse == []
    cut.write_bytes(b"{}\n" + base.read_bytes())
    with pytest.raises(WorkloadError, match=r"cut\.jsonl: line 1 is not the record of a trial"):
        compare(base, cut)


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path: Path) -> None:
    """For `compare`, and for `reproduce` when it resumes."""
    base = write(tmp_path / "base" / "trials.jsonl", noisy())
    edited = tmp_path / "edited" / "trials.jsonl"
    edited.parent.mkdir()
    edited.write_bytes(b"\xef\xbb\xbf" + base.read_bytes().replace(b"\n", b"\r\n \n\n"))
    assert compare(base, edited).worse == []
    assert Store(edited.parent).records == Store(base.parent).records
    edited.write_bytes(b"\n\n[3]\n" + base.read_bytes())
    for read in (lambda: compare(base, edited), lambda: Store(edited.parent)):
        with pytest.raises(WorkloadError, match=r"trials\.jsonl: line 3 is not "):
            read()


@pytest.mark.parametrize("content", [None, "", "{", '{"benchmarks": 3}'])
def test_what_is_no_result_is_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WorkloadError, match=r"results\.json: (no such file|not a file of pytest-benchmark)"):
        compare(path, path)


def test_results_of_pytest_benchmark(tmp_path: Path) -> None:
    for turn in range(12):
        for side, seconds in (("base", 1.0), ("head", 1.2)):
            path = tmp_path / side / f"{turn}.json"
            path.parent.mkdir(exist_ok=True)
            entry = {
                "fullname": "tests/test_transport.py::test_hop[tcp]",
                "stats": {"median": seconds + turn / 100, "mean": 7},
            }
            path.write_text(
                json.dumps({"benchmarks": [entry], "machine_info": {"cpu": {"brand_raw": "x", "count": 2}}})
            )
    assert verdicts(tmp_path / "base", tmp_path / "head") == {
        ("tests/test_transport.py, test_hop[tcp]", "median (s)"): "regression"
    }


# The command


def pipeinfer(*arguments: object) -> int:
    """Its exit code."""
    return command_line(["compare", *map(str, arguments)])


def test_the_command_fails_on_a_regression_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = write(tmp_path / "base.jsonl", noisy()), write(tmp_path / "head.jsonl", noisy(0.8))
    assert pipeinfer(base, head, "--fail-on-regression", "--plot", tmp_path / "ratios") == 1
    assert "regression" in capsys.readouterr().out
    assert (tmp_path / "ratios.png").exists()
    assert (tmp_path / "ratios.svg").exists()
    assert pipeinfer(base, base, "--fail-on-regression") == 0
    capsys.readouterr()
    assert pipeinfer(base, head, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in told["rows"]} >= {"regression"}


def test_the_command_says_in_one_line_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeinfer(tmp_path / "nothing", tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
