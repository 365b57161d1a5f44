"""The gate's baseline: counts.json and simulated_time.json beside this file. `--update-baseline` writes both anew."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COUNTS, TIMES = HERE / "counts.json", HERE / "simulated_time.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-baseline", action="store_true", help="take what is measured now as the baseline")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before pytest-benchmark reads its options: an update compares with nothing, and writes."""
    if config.option.update_baseline:
        config.option.benchmark_compare = config.option.benchmark_compare_fail = None
        config.option.benchmark_json = TIMES


@pytest.fixture(scope="session")
def counts(pytestconfig: pytest.Config) -> Iterator[dict[str, Any]]:
    """The baseline by cell; what a test adds to it is kept when it is being updated."""
    if not pytestconfig.option.update_baseline:
        yield json.loads(COUNTS.read_text())
        return
    fresh: dict[str, Any] = {}
    yield fresh
    lines = [f"{json.dumps(cell)}: {json.dumps(figures)}" for cell, figures in fresh.items()]
    COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


# What pytest-benchmark writes: the simulated time of each cell, and nothing of a machine that it does not depend on.


def pytest_benchmark_generate_machine_info() -> dict[str, str]:
    return {"clock": "simulated"}


def pytest_benchmark_generate_commit_info() -> dict[str, str]:
    return {}


def pytest_benchmark_generate_json(benchmarks: list[Any], machine_info: dict[str, str]) -> dict[str, Any]:
    times = [{"fullname": one.fullname, "stats": {"mean": round(one.stats.mean, 9)}} for one in benchmarks]
    return {"machine_info": machine_info, "benchmarks": times}
