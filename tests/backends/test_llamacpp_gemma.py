"""A real model: Gemma 3 270M in Q4_K_M, from the packages that carry it, writes in one, two and three stages and under
every kind of schedule what llama-cpp-python's own loop writes."""

import sys
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from llamacpp_stages import llama_cpp
from real_prompts import PROMPTS

from pipeinfer.cli import main
from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.plugins import open_strategy
from pipeinfer.results.divergence import NEAR_COARSE, divergence
from pipeinfer_llamacpp import LlamaCppBackend

TOKENS = 64
CELLS = 1024
WRONG = 5
"""A token in the place of a guess that came to nothing: how many rows there are matters, and not what it was."""

STRATEGIES = ("iterative", "speculative", "pipeinfer", "adaptive")


class Case(NamedTuple):
    stages: int
    prompt: str
    strategy: str
    tokens: int = 24

    @property
    def drafting(self):
        """Lines that are alike are guessed from the text: at once, where a draft would first read all of them."""
        return "ngram" if self.stages == 1 or self.prompt == "windows" else None

    def __str__(self):
        return f"{self.stages} stages, {self.prompt}, {self.strategy}"


def full():
    return [Case(*case, tokens=TOKENS) for case in product((1, 2, 3), PROMPTS, STRATEGIES)]


def selection():
    """Each strategy, one stage and several, and the prompt that is longer than the windows."""
    whole = [Case(1, "code", "iterative"), Case(1, "windows", "speculative")]
    return whole + [Case(3, "tale", strategy) for strategy in STRATEGIES] + [Case(3, "windows", "pipeinfer")]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = full() if metafunc.config.getoption("--full") else selection()
        metafunc.parametrize("case", cases, ids=map(str, cases))


class Text(NamedTuple):
    """As much of a trial as decides whether another text is the same."""

    token_ids: tuple[int, ...]
    margins: tuple[float, ...]
    precision: str = "q4_k"


class OwnLoop:
    """llama-cpp-python over the whole file, a token at a time: one thread, flash attention, KV cells of float16."""

    def __init__(self, path):
        self._model = llama_cpp.Llama(
            str(path), n_ctx=CELLS, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False
        )  # fmt: skip
        self.close = self._model.close

    def prompt(self, name):
        return self._model.tokenize(PROMPTS[name].encode(), add_bos=True)

    def text(self, name, count):
        """What it goes on with, and how near each choice was to another one."""
        ids, margins = [], []
        for logits in self._logits(name, ids, count):
            second, best = np.partition(logits, -2)[-2:]
            margins.append(float(best - second))
            ids.append(int(logits.argmax()))
        return Text(tuple(ids), tuple(margins))

    def shortfall(self, name, ids):
        """How far, in logits, any of the tokens `ids` is from what it would itself have gone on with there."""
        each = zip(self._logits(name, ids, len(ids)), ids, strict=True)
        return max(float(logits.max() - logits[one]) for logits, one in each)

    def in_the_same_runs(self, name, trial):
        """What it goes on with when it is given as many rows at once as the trial's runs had, one run after another."""
        text = [*self.prompt(name), *trial.token_ids]
        start, chosen = 0, []
        for run in trial.runs:
            right = run.rows - run.drafted + run.accepted
            rows = [*text[start : start + right], *[WRONG] * (run.rows - right)]
            chosen += self._decode(rows, start)[:right]
            start += right
        return chosen[len(text) - len(trial.token_ids) - 1 :][: len(trial.token_ids)]

    def _decode(self, rows, start):
        """The likeliest token after each row of a batch that stands at `start`."""
        context = self._model.ctx
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), 0, start, -1)
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, token in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, start + at, 1, 1
            batch.seq_id[at][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        pointers = [llama_cpp.llama_get_logits_ith(context, at) for at in range(len(rows))]
        best = [int(np.ctypeslib.as_array(pointer, (self._model.n_vocab(),)).argmax()) for pointer in pointers]
        llama_cpp.llama_batch_free(batch)
        return best

    def _logits(self, name, ids, count):
        """Before each of `count` tokens, which are `ids`: they may be added meanwhile."""
        rows = self.prompt(name)
        self._model.reset()
        for number in range(count):
            self._model.eval(rows)
            pointer = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
            yield np.ctypeslib.as_array(pointer, (self._model.n_vocab(),)).copy()
            rows = [ids[number]]


@pytest.fixture(scope="module")
def own_loop(gemma):
    loop = OwnLoop(gemma)
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def expected(own_loop):
    """What llama-cpp-python goes on with, worked out once for each prompt."""
    return cache(own_loop.text)


@pytest.fixture(scope="module")
def opened(gemma, shared):
    """Gives the cluster of so many stages; consecutive cases share one. Several have the model as its own draft."""
    options = {"cache": str(shared / "cache"), "threads": 1}
    latest = {}

    def open_cluster(stages):
        if stages not in latest:
            while latest:
                latest.popitem()[1].close()
            sizes = {"stages": stages, "cells": CELLS}
            models = {"target": str(gemma), "draft": str(gemma) if stages > 1 else None}
            plan = Plan(backend="llamacpp", backend_options=options, transport="inproc", **sizes, **models)
            latest[stages] = Cluster(plan)
        return latest[stages]

    yield open_cluster
    for cluster in latest.values():
        cluster.close()


def test_every_schedule_writes_what_llama_cpp_python_writes(opened, own_loop, expected, case, request):
    """Or parts from it as llama.cpp parts from itself. Synchronous speculation writes what its loop writes when it is
    given the same rows at once; where rows overtake one another, the best two tokens are a rounding apart, and the text
    goes on as the loop would have gone on there.

    Where texts part is in the results that `--junitxml` writes.
    """
    cluster = opened(case.stages)
    prompt = cluster.tokenizer.encode(PROMPTS[case.prompt])
    assert prompt == own_loop.prompt(case.prompt)  # its BOS first
    limits = {"max_tokens": case.tokens, "stop_ids": (), "drafting": case.drafting}
    trial = cluster.generate(prompt, open_strategy(case.strategy, {}), **limits)
    assert len(trial.token_ids) == case.tokens
    if parted := divergence(trial, expected(case.prompt, case.tokens)):
        request.node.user_properties.append(("parted", parted.text))
        if case.strategy == "speculative":
            assert own_loop.in_the_same_runs(case.prompt, trial) == list(trial.token_ids), parted.text
            return
        assert parted.is_tie, parted.text
        assert own_loop.shortfall(case.prompt, trial.token_ids) <= NEAR_COARSE


def test_there_is_a_prompt_that_is_longer_than_the_windows(own_loop):
    assert len(own_loop.prompt("windows")) > 512


def test_it_writes_sense(own_loop, gemma):
    ids = own_loop.text("fact", 20).token_ids
    assert " the capital of the country of France" in LlamaCppBackend().tokenizer(str(gemma)).decode(ids)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "builtin:draft and MODEL have different vocabularies (2048 and 262144 entries)"),
        (["--chat", "--draft", "MODEL"], "MODEL has no chat template"),
    ],
    ids=["another model's draft", "conversations"],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(gemma, monkeypatch, capfd, options, said):
    command = ["--backend", "llamacpp", "--target", "MODEL", "--transport", "inproc", *options]
    filled = [part.replace("MODEL", str(gemma)) for part in command]
    monkeypatch.setattr(sys, "argv", ["pipeinfer", "generate", "Once", *filled])
    with pytest.raises(SystemExit, match="2"):
        main()
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith("error: " + said.replace("MODEL", str(gemma)))
    assert errors.count("\n") == 1
