"""Every metric, derived from the raw record of a trial. Times in seconds, sizes in bytes.

Speculation commits several tokens at once, so gaps between tokens are bursty: zero gaps count, and percentiles stand
beside the mean. Where a metric is not defined (one token has no gap) it is None.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeinfer.results.trial import RankRecord, RunRecord, Trial


def duration_s(trial: Trial) -> float:
    """From the request to the last committed token."""
    return trial.emit_s[-1] if trial.emit_s else 0.0


def tokens_per_second(trial: Trial) -> float | None:
    """Decoding speed: (n - 1) / (t_last - t_first), which leaves the prompt out. None below two tokens."""
    n = len(trial.emit_s)
    span = trial.emit_s[-1] - trial.emit_s[0] if n > 1 else 0.0
    return (n - 1) / span if span > 0 else None


def tokens_per_second_with_prompt(trial: Trial) -> float | None:
    """n / t_last: what someone who waits for the answer gets."""
    end = duration_s(trial)
    return len(trial.emit_s) / end if end > 0 else None


def ttft_s(trial: Trial) -> float | None:
    """Time to first token, with the prompt: from the request to the first commit."""
    return trial.emit_s[0] if trial.emit_s else None


def prompt_chunk(trial: Trial) -> int:
    """The most tokens of the prompt that were sent at a time."""
    return max((run.rows for run in trial.runs if run.kind == "prompt"), default=0)


def ttft_decode_s(trial: Trial) -> float | None:
    """Time to first token as the artifact counts it: one decode traversal, after the prompt.

    The prompt's evaluation brings the first token here; the artifact starts its clock there and stops it at the next
    token. So this is the gap between the first two commits.
    """
    return trial.emit_s[1] - trial.emit_s[0] if len(trial.emit_s) > 1 else None


def itl_s(trial: Trial) -> dict[str, float | None]:
    """Inter-token latency: mean and percentiles of the gaps between consecutive tokens, zero gaps included."""
    gaps = np.diff(np.asarray(trial.emit_s))
    if not len(gaps):
        return dict.fromkeys(("mean", "p50", "p95", "p99"))
    p50, p95, p99 = np.percentile(gaps, [50, 95, 99])
    return {"mean": float(gaps.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


# Speculation


def cancelled(run: RunRecord) -> bool:
    """The head gave it up before its result was in."""
    return run.cancel_sent_s is not None or run.cancelled_at >= 0


def verified(run: RunRecord) -> bool:
    """It came back computed by every stage, and the head had not given it up."""
    return run.finished_s is not None and not cancelled(run)


def _speculative(trial: Trial) -> list[RunRecord]:
    return [run for run in trial.runs if run.kind == "speculative"]


def acceptance_length(trial: Trial) -> float | None:
    """Tokens that a verified speculative run made known: its accepted drafts and the target's own token after them.

    Where runs continue one another, that own token is also the first draft of the next run.
    """
    accepted = [run.accepted for run in _speculative(trial) if verified(run) and run.judged]
    return 1 + sum(accepted) / len(accepted) if accepted else None


def acceptance_rate(trial: Trial) -> float | None:
    """Accepted drafts over drafts submitted, those of cancelled runs included."""
    runs = _speculative(trial)
    drafted = sum(run.drafted for run in runs)
    return sum(run.accepted for run in runs) / drafted if drafted else None


def conditional_acceptance(trial: Trial) -> list[float]:
    """Per draft position in a run: the chance that it is accepted when the target judged it, that is, when all before
    it was accepted. For chains; a tree has several drafts per position, of which one at most can be right."""
    runs = _speculative(trial)
    rates = []
    for position in range(max((run.judged for run in runs), default=0)):
        judged = [run for run in runs if run.judged > position]
        rates.append(sum(run.accepted > position for run in judged) / len(judged))
    return rates


def accepted_histogram(trial: Trial) -> dict[int, int]:
    """How many judged runs had 0, 1, 2, ... of their drafts accepted."""
    return dict(sorted(Counter(run.accepted for run in _speculative(trial) if run.judged).items()))


def accepted_counts(trial: Trial) -> list[int]:
    """The same as a list: as many entries as the longest stretch of accepted drafts, and one."""
    found = accepted_histogram(trial)
    return [found.get(count, 0) for count in range(max(found, default=-1) + 1)]


def run_counts(trial: Trial) -> dict[str, int]:
    """Runs by kind and by how they ended: submitted = verified + cancelled + unfinished."""
    runs = trial.runs
    ended = sum(map(verified, runs))
    given_up = sum(map(cancelled, runs))
    return {
        "submitted": len(runs),
        "verified": ended,
        "cancelled": given_up,
        "unfinished": len(runs) - ended - given_up,
        **{kind: sum(run.kind == kind for run in runs) for kind in ("prompt", "single", "speculative")},
    }


def wasted_rows(trial: Trial) -> int:
    """Drafted rows that were sent and not accepted."""
    return sum(run.drafted - run.accepted for run in trial.runs)


def compute_saved_s(trial: Trial) -> float:
    """Compute that cancellation saved, over all stages.

    For each stage at which a cancelled run was skipped or cut short: the median compute of runs with as many rows that
    were completed on that stage, less what the cancelled one spent there. A row count that nobody completed counts
    as nothing saved.
    """
    completed: dict[tuple[int, int], list[float]] = defaultdict(list)
    for run in trial.runs:
        until = len(run.compute_s) if run.cancelled_at < 0 else run.cancelled_at
        for stage, seconds in enumerate(run.compute_s[:until]):
            completed[stage, run.rows].append(seconds)
    usual = {key: float(np.median(seconds)) for key, seconds in completed.items()}
    return sum(
        usual[stage, run.rows] - run.compute_s[stage]
        for run in trial.runs
        if run.cancelled_at >= 0
        for stage in range(run.cancelled_at, len(run.compute_s))
        if (stage, run.rows) in usual
    )


def row_cost(trials: Iterable[Trial]) -> float | None:
    """What a further row of a run costs, as a share of a run of one: the slope of the line through the seconds that all
    stages together computed, over rows. None where all runs were of as many rows.

    Of runs only that had the pipeline to themselves: where ranks share cores, others would slow them down."""
    seconds: dict[int, list[float]] = defaultdict(list)
    for trial in trials:
        for run in _alone(trial):
            seconds[run.rows].append(sum(run.compute_s))
    if len(seconds) < 2:
        return None
    rows, weights = list(seconds), [len(found) ** 0.5 for found in seconds.values()]
    slope, none = np.polyfit(rows, [float(np.median(found)) for found in seconds.values()], 1, w=weights)
    return float(max(0.0, slope) / (none + slope)) if none + slope > 0 else None


def _alone(trial: Trial) -> list[RunRecord]:
    """Runs after the prompt, computed whole, beside which no other was under way."""
    found, busy_until = [], 0.0
    following = [*(run.submitted_s for run in trial.runs[1:]), math.inf]
    for run, next_s in zip(trial.runs, following, strict=False):
        finished = math.inf if run.finished_s is None else run.finished_s
        if run.kind != "prompt" and verified(run) and busy_until <= run.submitted_s and finished <= next_s:
            found.append(run)
        busy_until = max(busy_until, finished)
    return found


# Ranks


def utilisation(trial: Trial) -> dict[int, float]:
    """Per rank: the share of the trial in which it computed, useful or not."""
    end = duration_s(trial)
    return {rank.rank: rank.busy_s / end if end > 0 else 0.0 for rank in trial.ranks}


def mean_utilisation(trial: Trial) -> float | None:
    """The mean over the ranks."""
    shares = utilisation(trial).values()
    return sum(shares) / len(shares) if shares else None


def largest_memory(trial: Trial) -> float | None:
    """Bytes on the rank that holds most. None where no rank says."""
    return float(max((rank.peak_memory for rank in trial.ranks), default=0)) or None


def total_memory(trial: Trial) -> float | None:
    """Bytes on all ranks together. None where no rank says."""
    return float(sum(rank.peak_memory for rank in trial.ranks)) or None


def speed_per_gigabyte(trial: Trial) -> float | None:
    """Tokens/s per 1e9 bytes on all ranks together."""
    speed, memory = tokens_per_second(trial), total_memory(trial)
    return None if speed is None or memory is None else speed / (memory / 1e9)


def processor_s_per_token(trial: Trial) -> float | None:
    """Seconds of processors that the head and all ranks used per generated token, the prompt's included. None where
    that is not known."""
    return trial.processor_s / len(trial.token_ids) if trial.processor_s > 0 and trial.token_ids else None


def bytes_per_token(trial: Trial) -> dict[str, float]:
    """Per link, as "sender>receiver" ("head" for -1): bytes on the wire per generated token, the prompt's included."""
    n = max(1, len(trial.token_ids))
    return {
        f"{rank.rank}>{'head' if to < 0 else to}": size / n
        for rank in trial.ranks
        for to, size in rank.bytes_sent.items()
    }


# All of it


def summary(trial: Trial) -> dict[str, Any]:
    """Every metric of a trial as one JSON object."""

    def named(*found: Callable[[Trial], Any]) -> dict[str, Any]:
        return {metric.__name__: metric(trial) for metric in found}

    return {
        "strategy": trial.strategy,
        "fidelity": trial.fidelity,
        "reason": trial.reason,
        "prompt_tokens": trial.prompt_tokens,
        **named(prompt_chunk),
        "token_ids": list(trial.token_ids),
        **named(tokens_per_second, tokens_per_second_with_prompt, ttft_s, ttft_decode_s, itl_s),
        **named(acceptance_length, acceptance_rate, conditional_acceptance, accepted_histogram),
        "runs": run_counts(trial),
        **named(wasted_rows),
        "row_cost": row_cost([trial]),
        **named(compute_saved_s),
        "utilisation": mean_utilisation(trial),
        **named(largest_memory, total_memory, bytes_per_token, processor_s_per_token),
        "ranks": _ranks(trial),
    }


def _ranks(trial: Trial) -> list[dict[str, Any]]:
    """What is known of each but for its traffic, which is told per link."""
    busy = utilisation(trial)
    told = [name for name in RankRecord.__struct_fields__ if name not in ("bytes_sent", "messages_sent")]
    return [
        {**{name: getattr(rank, name) for name in told}, "utilisation": busy[rank.rank]} for rank in trial.ranks
    ]
