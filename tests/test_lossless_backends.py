"""Each backend, split and scheduled in every way, gives the token ids of its own single stage, decoding one by one.

By default a selection in which any two of backend, strategy, stages, transport and temperature meet; with `pytest
--full` every combination (`-k torch-tcp` for a piece of it).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import combinations, product
from typing import Any, NamedTuple

import msgspec
import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.mpi_world import OVERSUBSCRIBE, find_mpiexec, join_world
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_strategy
from pipeinfer.prompt_sets import suite
from pipeinfer.results.trial import Trial

TOKENS = 48
WORLD_S = 580.0
TREE: dict[str, Any] = {"branches": 3, "split": 0.05}
BACKENDS: dict[str, dict[str, Any]] = {
    "numpy": {},
    "torch": {"device": "cpu", "dtype": "float32"},
    "llamacpp": {"quantisation": "f32", "kv_type": "f32"},
}
NEEDS = {"numpy": "numpy", "torch": "transformers", "llamacpp": "llama_cpp"}
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "iterative": ("iterative", {}),
    "speculative chain": ("speculative", {}),
    "speculative tree": ("speculative", {"k": 6, **TREE}),
    "pipeinfer chain": ("pipeinfer", {}),
    "pipeinfer tree": ("pipeinfer", {"draft": 4, **TREE}),
}
STAGES = (2, 1, 4)  # in this order, so that the fewest MPI ranks load torch, which takes long
TRANSPORTS = ("inproc", "tcp", "mpi")
HOW = {"T=0": Sampling(), "T=0.8": Sampling(temperature=0.8, top_p=0.95, seed=7)}


class Case(NamedTuple):
    """One generation of the matrix, with a prompt of the suite."""

    backend: str
    transport: str
    stages: int
    strategy: str
    how: str
    prompt: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


def full() -> list[Case]:
    every = product(BACKENDS, TRANSPORTS, STAGES, STRATEGIES, HOW)
    return [Case(*one, prompt=i % 20) for i, one in enumerate(every)]


def selection() -> list[Case]:
    """Every strategy on every backend; the rest so that all pairs of variants come about."""
    found = []
    for (i, strategy), (j, backend) in product(enumerate(STRATEGIES), enumerate(BACKENDS)):
        transport, stages, how = TRANSPORTS[(i + 2 * j) % 3], STAGES[(i + j) % 3], [*HOW][(i + j) % 2]
        found.append(Case(backend, transport, stages, strategy, how, prompt=3 * i + j))
    return sorted(found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = full() if metafunc.config.getoption("--full") else selection()
        metafunc.parametrize("case", cases, ids=map(str, cases))


def plan(case: Case) -> Plan:
    return Plan(
        backend=case.backend, backend_options=BACKENDS[case.backend], transport=case.transport, stages=case.stages
    )  # fmt: skip


def generate(cluster: Cluster, case: Case) -> Trial:
    name, options = STRATEGIES[case.strategy]
    prompt = cluster.tokenizer.encode(suite()[case.prompt])
    return cluster.generate(
        prompt, open_strategy(name, options), max_tokens=TOKENS, sampling=HOW[case.how], stop_ids=()
    )  # fmt: skip


@cache
def reference(backend: str, how: str, prompt: int) -> tuple[int, ...]:
    """What the backend's single stage says, one token at a time."""
    with Cluster(backend=backend, backend_options=BACKENDS[backend], stages=1, draft=None, transport="inproc") as one:
        text = one.tokenizer.encode(suite()[prompt])
        return one.generate(text, Iterative(), max_tokens=TOKENS, sampling=HOW[how], stop_ids=()).token_ids


class Opened:
    """The cluster that was asked for last; consecutive cases share one."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._cluster: Cluster | None = None

    def run(self, case: Case) -> Trial:
        if self._cluster is None or plan(case) != self._plan:
            self.close()
            self._plan, self._cluster = plan(case), Cluster(plan(case))
        return generate(self._cluster, case)

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


class Runner:
    """Runs cases here, and those over MPI in one world, all that are asked for at once."""

    def __init__(self, asked: list[Case]) -> None:
        self.opened = Opened()
        self._over_mpi = [case for case in asked if case.transport == "mpi" and is_installed(case.backend)]
        self._world: dict[Case, Trial] = {}

    def run(self, case: Case) -> Trial:
        if case.transport != "mpi":
            return self.opened.run(case)
        if not self._world:
            self.opened.close()
            self._world = dict(zip(self._over_mpi, run_world(self._over_mpi), strict=True))
        return self._world[case]


def is_installed(backend: str) -> bool:
    return find_spec(NEEDS[backend]) is not None


def run_world(cases: list[Case]) -> list[Trial]:
    """The cases, one after another, in one MPI world: a head, ranks for the stages and one for the draft."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    try:
        count = 1 + max(case.stages for case in cases) + 1
        command = [find_mpiexec(), "-n", str(count), sys.executable, __file__, msgspec.json.encode(cases).decode()]
    except LaunchError as problem:
        pytest.skip(str(problem))
    environment = {**OVERSUBSCRIBE, **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=WORLD_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=list[Trial])


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    asked = [item.callspec.params["case"] for item in request.session.items
             if getattr(item, "callspec", None) and isinstance(item.callspec.params.get("case"), Case)]  # fmt: skip
    runner = Runner(asked)
    yield runner
    runner.opened.close()


def test_in_the_selection_any_two_variants_meet() -> None:
    cases = [case[:5] for case in selection()]
    variants = (BACKENDS, TRANSPORTS, STAGES, STRATEGIES, HOW)
    for (i, some), (j, others) in combinations(enumerate(variants), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(some, others))


@pytest.mark.timeout(600)
def test_the_tokens_are_those_of_a_single_stage(case: Case, runner: Runner) -> None:
    if not is_installed(case.backend):
        pytest.skip(f"{NEEDS[case.backend]} is not installed: pip install 'pipeinfer[{case.backend}]'")
    trial = runner.run(case)
    assert trial.token_ids == reference(case.backend, case.how, case.prompt)
    assert (len(trial.token_ids), trial.precision) == (TOKENS, "float32")
    if case.strategy.startswith("speculative"):  # The others are free to outrun their draft.
        assert any(run.drafted for run in trial.runs)


if __name__ == "__main__":
    join_world()
    here = Opened()
    trials = [here.run(one) for one in msgspec.json.decode(sys.argv[1], type=list[Case])]
    here.close()
    print(msgspec.json.encode(trials).decode())
