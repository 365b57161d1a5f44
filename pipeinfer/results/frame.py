"""Records as tables: a row per trial (`trials.parquet`), per gap between tokens (`gaps.parquet`), per rank and trial
(`ranks.parquet`), and per stretch of a rank's time where it was kept (`spans.parquet`).

This module loads pandas; nothing that ranks or simulation workers import may import it.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeinfer.results import metrics
from pipeinfer.results.records import Record
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.spans import Span

USUAL_PROMPT = 64
"""Tokens of the prompt where an experiment is not about it."""

PLACE = {
    "cluster": "where ranks and links are modelled: name or file; where the simulator is checked, the backend",
    "pair": "target and draft model, where they are modelled",
    "nodes": "ranks, the draft's included",
    "acceptance": "chance that a drafted token is right when all before it were; 0 where it is real",
    "drafts": 'what acceptance is like where it is not i.i.d.: "varied", phases, or a recorded trace',
    "accounting": "which ranks hold what: same-ranks or as-published (docs/fairness.md)",
    "width_cost": "cost of a further row, of the roofline's",
    "draft_cost": "cost of a drafted token, of the model's",
    "bandwidth_gbps": "bandwidth of links where it is set (1e9 bit/s)",
    "latency_us": "latency of links where it is set (microseconds)",
    "temperature": "of sampling, where text is really generated; 0: greedy",
    "prompt": "length of the prompt where it is modelled (tokens)",
    "requests": "how many were in the pipeline at once",
}
"""Where strategies are compared: everything about a trial but the strategy, its options and the repetition."""

METRICS: dict[str, tuple[str, Any]] = {
    "tokens_per_s": ("generation speed, from the first token to the last (tokens/s)", metrics.tokens_per_second),
    "ttft_s": ("from the request to the first token (s)", metrics.ttft_s),
    "ttft_decode_s": ("from the first token to the second (s)", metrics.ttft_decode_s),
    "acceptance_length": ("tokens made known per verified speculative run", metrics.acceptance_length),
    "acceptance_rate": ("accepted over submitted drafts", metrics.acceptance_rate),
    "utilisation": ("share of the time that ranks compute, mean over the ranks", metrics.mean_utilisation),
    "largest_rank_gb": ("memory of the largest rank (1e9 bytes)", lambda one: _gigabytes(metrics.largest_memory(one))),
    "memory_gb": ("memory of all ranks (1e9 bytes)", lambda trial: _gigabytes(metrics.total_memory(trial))),
    "tokens_per_s_per_gb": ("generation speed per 1e9 bytes on all ranks", metrics.speed_per_gigabyte),
    "processor_s_per_token": (
        "what head and ranks used of processors per token, the prompt included (s)", metrics.processor_s_per_token
    ),
    "duration_s": ("from the request to the last token (s)", metrics.duration_s),
    "prompt_tokens": ("length of the prompt (tokens)", lambda trial: trial.prompt_tokens),
    "tokens": ("length of the text (tokens)", lambda trial: len(trial.token_ids)),
}

LATENCY = {
    "itl_mean_s": "gaps between tokens, mean (s)",
    "itl_p50_s": "gaps between tokens, median (s)",
    "itl_p95_s": "gaps between tokens, 95th percentile (s)",
    "itl_p99_s": "gaps between tokens, 99th percentile (s)",
}
"""`pipeinfer.results.metrics.itl_s`."""

COLUMNS = {
    "config_hash": "of the cell: the same in trials.jsonl and in every table",
    "recipe": "the experiment; a trial that two experiments share has a row in each",
    "contender": "what the experiment calls the strategy with these settings",
    "strategy": "iterative, speculative, pipeinfer, or a plug-in's",
    "program": "the compiled program that ran in its place, if one did",
    "variant": "options that the experiment tries, as text",
    "k": "drafted tokens per synchronous run, where it is an option",
    "draft": "drafted tokens per micro-batch, where it is an option",
    "cutoff": "confidence below which drafting stops, where it is an option",
    "draw": "what is repeated in a place: seed, or text and repetition",
    "text": "what decides the token ids: all of the draw but the repetition",
    "load": "which of a place's loads it was a request of, where several were in the pipeline at once",
    "category": "of the prompt, where a real one is continued",
    "fidelity": "sim, emulated or real",
    **PLACE,
    "place": "number of the place: equal where recipe, fidelity and all that makes a place are",
    "status": "passed, tie, differs, failed, no reference, or not judged",
    "why": "of a status other than passed",
    "tuning": "whether options were chosen by it, and all are compared by others",
    "best": "whether it is compared, and of the variant that is the contender's fastest in its place",
    "over_iterative": "generation speed, of the best iterative one of the same place and draw",
    "over_speculative": "generation speed, of the best speculative one of the same place and draw",
    **{name: about for name, (about, _) in METRICS.items()},
    **LATENCY,
    "accepted": "how many judged speculative runs had 0, 1, 2, ... of their drafts accepted",
    "limit_tokens_per_s": "closed form for the best variant, where one applies (tokens/s)",
    "predicted_tokens_per_s": "what the simulator says of a real trial, where it was asked (tokens/s)",
    "row_cost": "what a further row of a run cost, of a run of one: by the runs of all the place's trials that had the "
                "pipeline to themselves, where it was not simulated",
    "own_compute": "whether no two ranks had to share a core",
    "backend": "engine of a real trial",
    "precision": "arithmetic of the target",
    "token_ids": "the text",
    "margins": "how near the choice of each token was to another (logits; with top-k or top-p up to 1), where asked",
    "generated": "the text as characters, where it is real",
    "loaded_s": "when a program of others began to read the prompt (s); absent: it does not show",
    "whole_s": "what a program of others took with loading and leaving (s)",
    "own_clock_tokens_per_s": "what a program of others says of itself",
    "seconds": "what it took to obtain the trial (s)",
    "processor": "of the machine on which the head ran",
    "cores": "of that machine",
    "hosts": "of the ranks",
}
"""Columns of trials.parquet and what they are, with units."""


class Tables(NamedTuple):
    """All tables of a results folder; `gaps`, `ranks` and `spans` are joined to `trials` by config_hash."""

    trials: pd.DataFrame
    gaps: pd.DataFrame
    ranks: pd.DataFrame
    spans: pd.DataFrame

    def write(self, folder: Path, made_from: str = "") -> None:
        """A table that cannot be written whole leaves the one before it; that of the trials comes last, with the mark
        of what all were made from. Raises OSError."""
        self.trials.attrs[MADE_FROM] = made_from
        for name, table in reversed(self._asdict().items()):
            begun = folder / f"{name}.parquet.part"
            try:
                table.to_parquet(begun, index=False)
                begun.replace(folder / f"{name}.parquet")
            finally:
                begun.unlink(missing_ok=True)


MADE_FROM = "made from"
"""The attribute of the table of trials that says so."""


def read_tables(folder: Path) -> Tables:
    """What `write` wrote. Raises FileNotFoundError when a table is not there."""
    return Tables(*(pd.read_parquet(folder / f"{name}.parquet") for name in Tables._fields))


def collected(found: Iterable[tuple[Record, Iterable[tuple[str, str]]]]) -> Tables:
    """The tables of records, each with the (recipe, contender) pairs that it belongs to; one after another, since all
    of a sweep's records are more than memory should hold. What is judged later is empty."""
    times: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    ranks: list[tuple[Any, ...]] = []
    spans: list[tuple[Any, ...]] = []
    for record, memberships in found:
        rows += _trial_rows(record, memberships)
        name, trial = record.config_hash, record.trial
        if trial is not None:
            times[name] = np.asarray(trial.emit_s)
            ranks += _rank_rows(name, trial)
            spans += [(name, span.rank, _kind(span, trial), span.start, span.end) for span in record.spans]
    return Tables(
        _trials_table(rows), _gaps_table(times), pd.DataFrame(ranks, columns=RANKS),
        pd.DataFrame(spans, columns=SPANS),
    )  # fmt: skip


def _trial_rows(record: Record, memberships: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows of a record: one for each (recipe, contender) that it belongs to. None of a predictor's."""
    config = record.config
    if "setting" in config:
        row = _simulated(config)
    elif "prompt" in config:
        row = _real(config)
    else:
        return []
    trial, environment = record.trial, record.environment
    options = row.pop("options")
    row |= {name: options.get(name) for name in ("k", "draft", "cutoff")}
    row |= {"variant": label(options), "fidelity": record.fidelity, "config_hash": record.config_hash}
    row |= {"seconds": record.seconds, "processor": environment.get("processor"), "cores": environment.get("cores", 0)}
    row |= {"why": record.error, "status": "failed" if trial is None else ""}
    if trial is not None:
        row |= measured(trial) | _outcome(trial, environment.get("cores", 0))
    return [{**row, "recipe": recipe, "contender": contender} for recipe, contender in memberships]


def measured(trial: Trial) -> dict[str, Any]:
    """What was measured of a trial, and what decides whether its text is another's: every table has these columns."""
    return {
        **{name: of(trial) for name, (_, of) in METRICS.items()},
        **{f"itl_{name}_s": value for name, value in metrics.itl_s(trial).items()},
        "precision": trial.precision, "token_ids": list(trial.token_ids), "margins": list(trial.margins),
    }  # fmt: skip


def label(options: Mapping[str, Any]) -> str:
    """Options for a table: `k 4`."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _simulated(config: Mapping[str, Any]) -> dict[str, Any]:
    one = config["setting"]
    place = {name: one[name] for name in PLACE if name in one}
    draw = f"text {one['seed']}" if one["trace"] else f"seed {one['seed']}"
    phases = (one.get("phases") or {}).get("name", "")
    drafts = one["trace"] or phases or ("varied" if one["difficulty"] else "")
    return {
        **place, "cluster": config["cluster"], "pair": config["pair"], "drafts": drafts, "temperature": None,
        "strategy": one["strategy"], "program": "", "options": one["options"], "draw": draw, "text": draw,
        "backend": "", "requests": config.get("requests", 1), "load": one["seed"] - config.get("number", 0),
    }  # fmt: skip


def _real(config: Mapping[str, Any]) -> dict[str, Any]:
    live, text = config["live"], config["prompt"]
    shaped = live["predicted"] and live["bandwidth_gbps"] is not None
    return {
        "cluster": live["backend"] if shaped else "", "pair": "", "nodes": live["stages"] + 1, "acceptance": 0.0,
        "drafts": "", "accounting": "same-ranks", "width_cost": 1.0, "draft_cost": 1.0, "prompt": USUAL_PROMPT,
        "bandwidth_gbps": live["bandwidth_gbps"] if shaped else None,
        "latency_us": live["latency_us"] if shaped else None, "temperature": config["temperature"],
        "strategy": config.get("strategy", ""), "program": config.get("program", ""), "options": config["options"],
        "draw": f"{text} #{config['repeat']}", "text": text, "backend": live["backend"],
        "requests": config.get("requests", 1), "load": config["repeat"], "tuning": text in live.get("tuned_on", ()),
    }  # fmt: skip


def _outcome(trial: Trial, cores: int) -> dict[str, Any]:
    said, printed = trial.config, trial.config.get("own_tokens_per_second")
    hosts = dict.fromkeys(rank.host for rank in trial.ranks)
    return {
        "own_compute": all(
            sum(rank.cpu_share for rank in trial.ranks if rank.host == host) <= cores
            for host in (hosts if trial.fidelity == "real" else ())
        ),
        "accepted": metrics.accepted_counts(trial), "category": said.get("category"),
        "hosts": ", ".join(filter(None, hosts)), "generated": said.get("text"), "whole_s": said.get("whole_s"),
        "loaded_s": said.get("loaded_s"), "own_clock_tokens_per_s": float(printed) if printed else None,
    }  # fmt: skip


def hosts_of(trials: pd.DataFrame) -> list[str]:
    """Of the ranks of several trials, each once."""
    return list(dict.fromkeys(host for one in trials.hosts.dropna() for host in one.split(", ") if host))


def _gigabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e9


def _trials_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows with all columns, in the order of COLUMNS."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    numbers = [*METRICS, *LATENCY, "k", "draft", "cutoff", "bandwidth_gbps", "latency_us", "temperature", "loaded_s",
               "whole_s", "own_clock_tokens_per_s", "limit_tokens_per_s", "predicted_tokens_per_s", "over_iterative",
               "over_speculative", "row_cost"]  # fmt: skip
    table[numbers] = table[numbers].astype("float64")
    table["own_compute"], table["tuning"] = table["own_compute"].isin([True]), table["tuning"].isin([True])
    group = ["recipe", "fidelity", *PLACE]
    table["place"] = table.groupby(group, dropna=False, sort=False).ngroup()
    return table


def _gaps_table(times: Mapping[str, Any]) -> pd.DataFrame:
    """`token` counts from 1; `at_s`: since the request (s); `gap_s`: since the token before, or the request (s)."""
    at_s = pd.Series(times, dtype=object).explode().astype("float64").dropna()
    token = at_s.groupby(level=0, sort=False)
    return pd.DataFrame(
        {"token": token.cumcount() + 1, "at_s": at_s, "gap_s": token.diff().fillna(at_s)}
    ).rename_axis("config_hash").reset_index()  # fmt: skip


RANKS = ("config_hash", "rank", "role", "first_layer", "last_layer", "host", "busy_s", "utilisation", "memory_gb",
         "sent_gb", "messages", "cpu_share", "processor_s")  # fmt: skip
"""`busy_s` of compute (s), `utilisation` its share of the trial, `memory_gb` at the peak (1e9 bytes), what it sent
(`sent_gb`, `messages`), its `cpu_share`, and what it used of processors (`processor_s`, s)."""

SPANS = ("config_hash", "rank", "kind", "start_s", "end_s")
"""What a `rank` did from `start_s` to `end_s` since the request (s), by `kind`."""


def _rank_rows(name: str, trial: Trial) -> Iterator[tuple[Any, ...]]:
    for rank, share in zip(trial.ranks, metrics.utilisation(trial).values(), strict=True):
        yield (
            name, rank.rank, rank.role, rank.layers[0], rank.layers[1] - 1, rank.host, rank.busy_s, share,
            rank.peak_memory / 1e9, sum(rank.bytes_sent.values()) / 1e9, sum(rank.messages_sent.values()),
            rank.cpu_share, rank.processor_s,
        )  # fmt: skip


def _kind(span: Span, trial: Trial) -> str:
    if span.aborted:
        return "cut short by cancellation"
    kind, _, number = span.name.partition(" ")
    if kind != "speculative":
        return {"single": "single token"}.get(kind, kind)
    return "speculative, accepted" if trial.runs[int(number)].accepted else "speculative, rejected"
