"""Limits in closed form, as speedups over iterative decoding.

N stages of equal time, traversal T, i.i.d. conditional acceptance a, draft time d per token, wide verification as cheap
as narrow, cancellation free, links free, and for the pipelined chain drafts always ready. The simulator is held to
these under these assumptions (tests/modelling/test_theory.py).
"""


def synchronous(a: float, k: int, draft: float = 0.0) -> float:
    """Draft `k` tokens, verify them in one traversal, repeat. `draft` is d / T."""
    return expected_length(a, k) / (1 + k * draft)


def expected_length(a: float, k: int) -> float:
    """Tokens per verification of `k` drafts: 1 + a + ... + a^k."""
    return (1 - a ** (k + 1)) / (1 - a)


def best_synchronous(a: float, draft: float, most: int = 8) -> tuple[int, float]:
    """The best K up to `most`, and its speedup."""
    return max(((k, synchronous(a, k, draft)) for k in range(1, most + 1)), key=lambda found: found[1])


def pipelined_chain(a: float, stages: int, k: int) -> float:
    """Continuous speculation in runs of `k` drafted tokens that follow one another down the pipeline.

    A round of 1 / (1 - a) tokens takes N stage times for its single-token run to come back, and one more for each
    further run until the one that holds the rejected token: a / (1 - a^k) of them.
    """
    return stages / ((1 - a) * (stages + a / (1 - a**k)))


def chain_ceiling(a: float) -> float:
    """No chain of drafts can be faster, whatever its depth and micro-batch."""
    return 1 / (1 - a)
