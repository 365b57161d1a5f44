"""What is told of speculation, of the server and of the pipe."""

import re
from typing import Any

import pytest
from web_client import Served, WebClient

from pipeinfer.results.trial import RunRecord
from pipeinfer.serve.pipe_events import MOST_KEPT, MOST_LISTENERS, Listener, PipeEvents
from pipeinfer.serve.speculative_metrics import speculative_decoding


def run(drafted: int, accepted: int, *, judged: bool = True) -> RunRecord:
    return RunRecord("speculative", drafted + 1, drafted, accepted, 0.0, 1.0, -1, None, (), int(judged))


def test_acceptance_in_vllm_s_words() -> None:
    """43 steps of three drafts each, of which 39 had none right, one had one, three had all."""
    runs = [run(3, accepted) for accepted in [0] * 39 + [1] + [3] * 3] + [run(3, 0, judged=False)] * 5
    assert speculative_decoding(runs) == {
        "mean_acceptance_length": pytest.approx(1.2325581395348837),
        "draft_acceptance_rate": pytest.approx(0.07751937984496124),
        "acceptance_histogram": [39, 1, 0, 3],
        "acceptance_histogram_by_draft_length": {"3": [39, 1, 0, 3]},
        "num_spec_steps": 43,
        "num_accepted_draft_tokens": 10,
        "num_draft_tokens": 129,
        "num_spec_tokens": 3,
    }
    mixed = speculative_decoding([run(1, 1), run(2, 0), run(2, 2)])
    assert mixed["acceptance_histogram"] == [1, 1, 1]
    assert mixed["acceptance_histogram_by_draft_length"] == {"1": [0, 1], "2": [1, 0, 1]}
    nothing = speculative_decoding([])
    assert (nothing["num_spec_steps"], nothing["mean_acceptance_length"]) == (0, None)


SAMPLE = re.compile(r'([a-z_:]+)\{((?:[a-z_]+="[^"]*",?)+)\} ([0-9.e+-]+)')


def scraped(web: WebClient) -> dict[str, float]:
    """Every sample, without the model's name."""
    status, text, headers = web.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            name, labels, value = sample.groups()
            model, *others = labels.split(",")
            assert model == 'model_name="target"'
            found[name + "".join(others)] = float(value)
    typed = re.findall(r"# TYPE ([a-z_:]+) (counter|gauge)", text)
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in typed)
    assert len({name for name, _ in typed}) == len(typed)
    return found


def test_counters_count_what_responses_tell(web: WebClient) -> None:
    web.wait_until(lambda snapshot: snapshot.runs_in_flight == 0)  # of whoever asked before
    before = scraped(web)
    answer = web.complete(prompt="import os\n", max_tokens=20, temperature=0, pipeinfer={"strategy": "speculative"})
    web.wait_until(lambda snapshot: snapshot.runs_in_flight == 0)
    after = scraped(web)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    drafts = answer["metrics"]["speculative_decoding"]
    assert grown["pipeinfer_tokens_total"] == 20
    assert grown["pipeinfer_prompt_tokens_total"] == answer["usage"]["prompt_tokens"]
    assert grown['pipeinfer_requests_done_totalreason="length"'] == 1
    assert grown["vllm:spec_decode_num_accepted_tokens_total"] == drafts["num_accepted_draft_tokens"]
    assert grown["vllm:spec_decode_num_drafts_total"] >= drafts["num_spec_steps"] > 0
    assert grown["vllm:spec_decode_num_draft_tokens_total"] >= drafts["num_draft_tokens"]
    assert grown["pipeinfer_runs_total"] >= answer["metrics"]["pipeinfer"]["choices"][0]["runs"]
    assert grown['pipeinfer_stage_busy_seconds_totalstage="1"'] > 0
    assert after['pipeinfer_cellsstate="used"'] + after['pipeinfer_cellsstate="free"'] == 4096
    assert after['pipeinfer_requestsstate="running"'] == 0


def second(events: list[dict[str, Any]]) -> int:
    """The number of the second request that began."""
    return [int(event["began"]) for event in events if "began" in event][1]


def test_the_pipe_is_told_as_the_scheduler_does_it(web: WebClient, served: Served) -> None:
    pipe = served[2]
    web.wait_until(lambda snapshot: snapshot.runs_in_flight == 0)
    with pipe.listen() as listener:
        answer = web.complete(prompt="import os\n", max_tokens=20, temperature=0, pipeinfer={"strategy": "pipeinfer"})
        web.wait_until(lambda snapshot: snapshot.runs_in_flight == 0)
        web.complete(prompt="x", max_tokens=1, pipeinfer={"strategy": "iterative"})  # behind whatever there was
        events = listener.take()
    ended = next(index for index, event in enumerate(events) if event.get("began") == second(events))
    events = events[:ended]
    sent = [event["sent"] for event in events if "sent" in event]
    done = [event["done"] for event in events if "done" in event]
    assert sent == sorted(set(sent))
    assert done == sent
    assert len(sent) == answer["metrics"]["pipeinfer"]["choices"][0]["runs"]
    assert sum(event["committed"] for event in events if "committed" in event) == 20
    assert sum(event["drafted"] for event in events if "drafted" in event) > 0
    assert {run for event in events for run in event.get("cancelled", ())} <= set(sent)
    assert [event["reason"] for event in events if "ended" in event] == ["length"]
    times = [event["t"] for event in events]
    assert times == sorted(times)
    web.complete(prompt="import os\n", max_tokens=2)
    assert listener.take() == []


def test_a_listener_that_is_slow_is_told_what_it_missed() -> None:
    listener = Listener()
    for number in range(MOST_KEPT + 3):
        listener.append({"sent": number})
    first, second, *others = listener.take()
    assert (first, second, len(others)) == ({"lost": 3}, {"sent": 3}, MOST_KEPT - 1)
    listener.append({"sent": 0})
    assert listener.take() == [{"sent": 0}]


def test_listeners_are_few(web: WebClient, served: Served) -> None:
    pipe: PipeEvents = served[2]
    with pipe.listen():
        opened = [pipe.listen() for _ in range(MOST_LISTENERS - 1)]
        for listening in opened:
            listening.__enter__()
        assert web.ask("GET", "/pipe")[0] == 429
        for listening in opened:
            listening.__exit__(None, None, None)
    assert not pipe.full


def test_models_are_told_with_what_they_can(web: WebClient, chat: WebClient) -> None:
    (model,) = web.ask("GET", "/v1/models")[1]["data"]
    assert (model["id"], model["object"]) == ("target", "model")
    assert (model["max_model_len"], model["chat"], model["stages"]) == (2048, False, 2)
    assert chat.ask("GET", "/v1/models")[1]["data"][0]["chat"] is True
