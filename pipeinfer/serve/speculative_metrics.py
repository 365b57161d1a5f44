"""How well drafting went, in vLLM's words: the only file that knows them.

A step is a speculative run that the target judged: it knows the token after the text before the run's first draft.
What was drafted behind the first wrong token of a run counts as drafted, as it does there; runs that nobody judged
were given up before their text was reached, and are told under a key of our own.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pipeinfer.results.trial import RunRecord


def speculative_decoding(runs: Iterable[RunRecord]) -> dict[str, Any]:
    """The object `metrics.speculative_decoding` of a response. `acceptance_histogram[k]` are the steps of which k
    drafted tokens were accepted; by draft length, the same for the steps that had so many drafted tokens."""
    steps = [run for run in runs if run.judged]
    accepted, drafted = sum(run.accepted for run in steps), sum(run.drafted for run in steps)
    longest = max((run.drafted for run in steps), default=0)
    lengths = sorted({run.drafted for run in steps})
    return {
        "mean_acceptance_length": 1 + accepted / len(steps) if steps else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_histogram": _histogram(steps, longest),
        "acceptance_histogram_by_draft_length": {
            str(length): _histogram([run for run in steps if run.drafted == length], length) for length in lengths
        },
        "num_spec_steps": len(steps),
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": longest,
    }


def _histogram(steps: Sequence[RunRecord], longest: int) -> list[int]:
    counts = Counter(run.accepted for run in steps)
    return [counts[accepted] for accepted in range(longest + 1)] if steps else []


def counters(steps: int, drafted: int, accepted: int) -> dict[str, int]:
    """vLLM's counters for Prometheus."""
    return {
        "vllm:spec_decode_num_drafts_total": steps,
        "vllm:spec_decode_num_draft_tokens_total": drafted,
        "vllm:spec_decode_num_accepted_tokens_total": accepted,
    }
