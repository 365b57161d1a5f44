"""Texts over HTTP: what comes back, whole and in pieces, and that it is what the model writes alone."""

import queue
import threading
from typing import Any

import pytest
from web_client import Served, WebClient, web_server

from pipeinfer.engine.sampling import Sampling
from pipeinfer.engine.text_stream import TextStream
from pipeinfer.serve.answers import AnswerChoice
from pipeinfer.serve.event_stream import comment
from pipeinfer.serve.events import Ended, Failed, Paused, Resumed, Tokens
from pipeinfer.serve.refusal import Refusal

PROMPT = "def read_lines(path):"
GREEDY: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24}
IDS = {"token_ids": True}


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def ids(answer: dict[str, Any]) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["metrics"]["pipeinfer"]["choices"]]


def test_a_text_is_what_the_service_gives_and_is_told_as_openai_does(web: WebClient, served: Served) -> None:
    answer = web.complete(**GREEDY, pipeinfer=IDS)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "target"
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    tokenizer = served[0].tokenizer
    prompt = tokenizer.encode(PROMPT)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), 24)
    assert usage["total_tokens"] == len(prompt) + 24
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert tokenizer.decode([*prompt, *ids(answer)[0]]) == PROMPT + choice["text"]


def test_speculation_is_told_in_the_body(web: WebClient) -> None:
    answer = web.complete(**GREEDY, pipeinfer={"strategy": "speculative", "options": {"k": 3}})
    drafts = answer["metrics"]["speculative_decoding"]
    assert drafts.keys() == {
        "mean_acceptance_length", "draft_acceptance_rate", "acceptance_histogram", "num_spec_steps",
        "acceptance_histogram_by_draft_length", "num_accepted_draft_tokens", "num_draft_tokens", "num_spec_tokens",
    }  # fmt: skip
    assert sum(drafts["acceptance_histogram"]) == drafts["num_spec_steps"] > 0
    assert drafts["num_spec_tokens"] == 3
    (own,) = answer["metrics"]["pipeinfer"]["choices"]
    assert (own["strategy"], own["reason"]) == ("speculative", "length")
    assert own["tokens_per_second"] > 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_pieces_of_a_stream_are_the_text(chat: WebClient, path: str) -> None:
    asked = {"messages": [{"role": "user", "content": PROMPT}]} if "chat" in path else {"prompt": PROMPT}
    asked |= {"temperature": 0, "max_tokens": 16, "n": 2}
    whole = chat.post(path, **asked)
    chunks = chat.stream(path, **asked)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]} != {whole["id"]}
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        pieces = [part["delta"]["content"] if "delta" in part else part["text"] for part in parts]
        assert "".join(pieces) == (choice["message"]["content"] if "message" in choice else choice["text"])
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["length"]
        if "delta" in parts[0]:
            assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
    assert ["metrics" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_is_streamed_where_it_is_asked_for(web: WebClient) -> None:
    *chunks, last = web.stream("/v1/completions", **GREEDY, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 24
    assert "speculative_decoding" in last["metrics"]
    assert not any("usage" in chunk or "metrics" in chunk for chunk in chunks)
    options = {"continuous_usage_stats": True}
    counts = [chunk["usage"]["completion_tokens"] for chunk in
              web.stream("/v1/completions", **GREEDY, stream_options=options)]  # fmt: skip
    assert counts == sorted(counts)
    assert counts[-1] == 24


def test_a_stop_string_ends_a_text_before_it(web: WebClient) -> None:
    whole = text(web.complete(**GREEDY))
    middle = whole[10:14]
    for asked in (middle, ["never there", middle]):
        answer = web.complete(**GREEDY, stop=asked)
        assert text(answer) == whole[: whole.index(middle)]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 24
    pieces = web.stream("/v1/completions", **GREEDY, stop=middle)
    assert "".join(chunk["choices"][0]["text"] for chunk in pieces) == whole[: whole.index(middle)]


def test_an_end_of_text_is_a_stop_unless_it_is_to_be_ignored(web: WebClient, served: Served) -> None:
    whole = web.complete(**GREEDY, pipeinfer=IDS)
    end = ids(whole)[0][4]
    length = ids(whole)[0].index(end) + 1
    with web_server(*served, ends=(end,)) as other:
        ended = other.complete(**GREEDY, pipeinfer=IDS)
        assert ended["choices"][0]["finish_reason"] == "stop"
        assert ids(ended)[0] == ids(whole)[0][:length]
        assert text(whole).startswith(text(ended))
        assert text(ended) == text(web.complete(**{**GREEDY, "max_tokens": length - 1}))
        assert text(other.complete(**GREEDY, ignore_eos=True)) == text(whole)


def test_prompts_and_choices_stand_in_order_and_count_up_the_seed(web: WebClient, served: Served) -> None:
    tokenizer = served[0].tokenizer
    prompts = [PROMPT, "import os\n"]
    sampled: dict[str, Any] = {"temperature": 0.9, "max_tokens": 8}
    several = web.complete(prompt=prompts, n=2, seed=5, **sampled)
    alone = [text(web.complete(prompt=prompt, seed=seed, **sampled)) for prompt in prompts for seed in (5, 6)]
    assert [choice["text"] for choice in several["choices"]] == alone
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    assert several["usage"]["prompt_tokens"] == sum(map(len, encoded))
    by_ids = web.complete(prompt=encoded, n=2, seed=5, **sampled)
    assert [choice["text"] for choice in by_ids["choices"]] == alone
    assert text(web.complete(prompt=encoded[1], seed=5, **sampled)) == alone[2]


def test_without_a_seed_texts_differ_and_the_seed_is_told(web: WebClient) -> None:
    asked: dict[str, Any] = {"prompt": "\n", "max_tokens": 12, "temperature": 1.5}
    answers = [web.complete(**asked) for _ in range(2)]
    seeds = [answer["metrics"]["pipeinfer"]["seed"] for answer in answers]
    assert text(answers[0]) != text(answers[1])
    assert text(web.complete(**asked, seed=seeds[0])) == text(answers[0])


MIXED: list[dict[str, Any]] = [
    {"prompt": PROMPT, "temperature": 0, "max_tokens": 24,
     "pipeinfer": {"strategy": "speculative", "options": {"k": 2}}},
    {"prompt": "import os\n", "temperature": 0.8, "top_p": 0.9, "seed": 1, "max_tokens": 9},
    {"prompt": "class Queue:\n", "temperature": 1.1, "top_k": 20, "seed": 2, "max_tokens": 31},
    {"prompt": "# A", "temperature": 0, "max_tokens": 17, "pipeinfer": {"strategy": "iterative"}},
    {"prompt": "for index in range(", "seed": 2**64 - 1, "max_tokens": 20, "pipeinfer": {"strategy": "pipeinfer"}},
    {"prompt": "def f():\n" * 30, "temperature": 0, "max_tokens": 5},
]  # fmt: skip


def test_clients_at_once_get_what_each_gets_alone(web: WebClient, served: Served) -> None:
    alone: list[list[int]] = []
    for asked in MIXED:
        sampling = Sampling(asked.get("temperature", 1.0), asked.get("top_k", 0),
                            asked.get("top_p", 1.0), asked.get("seed", 0))  # fmt: skip
        alone.append(generated(served, asked["prompt"], asked["max_tokens"], sampling))
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        asked = MIXED[number % len(MIXED)]
        own = {**asked.get("pipeinfer", {}), **IDS}
        found[number] = ids(web.complete(**{**asked, "pipeinfer": own}))[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(12)] == alone * 2


def generated(served: Served, prompt: str, max_tokens: int, sampling: Sampling) -> list[int]:
    """What one request alone gets of the service, without a draft."""
    cluster, service, _ = served
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    service.submit(cluster.tokenizer.encode(prompt), max_tokens=max_tokens, sampling=sampling,
                   stop_ids=cluster.models.target.eos, strategy="iterative", on_event=heard.put)  # fmt: skip
    tokens: list[int] = []
    while not isinstance(event := heard.get(timeout=60), Ended):
        assert isinstance(event, Tokens)
        tokens += event.ids
    return tokens


def test_what_holds_a_text_up_is_a_comment_of_its_stream(served: Served) -> None:
    choice = AnswerChoice(0, [1], Sampling(), TextStream(served[0].tokenizer))
    for event, said in ((Paused("rank 1 is\nreplaced"), "paused: rank 1 is replaced"), (Resumed("on"), "resumed: on")):
        grown = choice.take(event)
        assert grown is not None
        assert (grown.text, grown.ended) == ("", False)
        assert comment(grown.comment) == f": {said}\n\n".encode()
    with pytest.raises(Refusal, match="lost rank 1") as failed:
        choice.take(Failed("lost rank 1"))
    assert failed.value.status == 503


def test_a_conversation_is_written_as_the_template_does(chat: WebClient) -> None:
    hi = [{"type": "text", "text": "Hi"}]
    said = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": hi}]
    answer = chat.post("/v1/chat/completions", messages=said, temperature=0, max_completion_tokens=8)
    written = chat.complete(prompt="# system: Be brief.\n# user: Hi\n", temperature=0, max_tokens=8)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": text(written)}
    assert answer["usage"]["prompt_tokens"] == written["usage"]["prompt_tokens"]
