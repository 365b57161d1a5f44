"""Limits in closed form, as speedups over iterative decoding.

N stages of equal time, traversal T, i.i.d. conditional acceptance a, draft time d per token, cancellation free, and for
the pipelined chain drafts always ready. Unless given, wide verification is as cheap as narrow and links are free. The
simulator is held to these under these assumptions (tests/modelling/test_theory.py).
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count


def synchronous(a: float, k: int, draft: float = 0.0, row: float = 0.0, fixed: float = 0.0) -> float:
    """Draft `k` tokens, verify them in one traversal, repeat. In units of T: `draft` is d, `row` what each further row
    of a traversal costs, `fixed` what every round costs beside it (iterative decoding pays that as well)."""
    return expected_length(a, k) * (1 + fixed) / (1 + k * (row + draft) + fixed)


def expected_length(a: float, k: int) -> float:
    """Tokens per verification of `k` drafts: 1 + a + ... + a^k."""
    return (1 - a ** (k + 1)) / (1 - a)


def best_synchronous(
    a: float, draft: float, most: int = 8, row: float = 0.0, fixed: float = 0.0, least: int = 1
) -> tuple[int, float]:
    """The best K from `least` to `most`, and its speedup."""
    found = ((k, synchronous(a, k, draft, row, fixed)) for k in range(least, most + 1))
    return max(found, key=lambda one: one[1])


def pipelined_chain(a: float, stages: int, k: int) -> float:
    """Continuous speculation in runs of `k` drafted tokens that follow one another down the pipeline.

    A round of 1 / (1 - a) tokens takes N stage times for its single-token run to come back, and one more for each
    further run until the one that holds the rejected token: a / (1 - a^k) of them.
    """
    return stages / ((1 - a) * (stages + a / (1 - a**k)))



def shared_rows(stages: int, requests: int, width: int, a: float = 0.0, k: int = 1) -> float:
    """Any number of requests in N slots whose runs carry up to `width` of them: their tokens together, over those of N
    without speculation, where such a run takes no longer than one of one row. Where there is room for more than a run
    of each, they send chains of `k` drafts ahead, right with the chance `a` each: a right one costs a request its share
    of the N `width` places, at least a stage time, a wrong one a traversal."""
    share = max(requests / (stages * width), 1 / stages)
    return requests / stages / (share if share >= 1 else (1 - a) * (1 + share * a / (1 - a**k)))



def ssd(a: float, k: int, draft: float, foreseen: float) -> float:
    """Rounds of `k` drafts whose drafting is hidden where the round's outcome was prepared: all right and the token
    after them too, or, with the chance `foreseen`, another candidate. What is prepared takes no longer than T."""
    hidden = a ** (k + 1)
    hidden += (1 - hidden) * foreseen
    return expected_length(a, k) / (1 + (1 - hidden) * k * draft)


def unbounded(a: float, draft: float) -> float:
    """Every draft verified at once on hardware without end (DSI): a right token costs a draft, a wrong one a traversal
    from when it was drafted."""
    return 1 / (1 - a + a * draft)



def asynchronous_chain(a: float, ratio: float) -> float:
    """One verification in flight, of all that was drafted meanwhile. `ratio` is T / d, at least 1. Also PEARL with so
    many drafts made in each traversal: one round checks the first after a wrong one, each further round all others.

    Round r + 1 after a wrong draft has checked floor(r * ratio) + 1 drafts; a further one comes if all were right.
    """
    rounds = 1.0
    for further in count():
        chance = a ** (int(further * ratio + 1e-9) + 1)
        rounds += chance
        if chance < 1e-12:
            break
    return 1 / ((1 - a) * rounds)



def pipelined_tree(h: float, stages: int) -> float:
    """A tree whose levels follow one another down the pipeline, where the target's token is in the next level with
    probability `h`: a hit takes one stage time, a miss the whole traversal. The chain in runs of one is its case
    h = a."""
    return 1 / (h / stages + 1 - h)


def segmented_chain(a: float, stages: int, k: int) -> float:
    """The pipelined chain in segments of `k` drafted tokens, of which the first is sent as soon as it has one."""
    return stages / ((1 - a) * (stages + a * (1 + a / (1 - a**k))))


def expected_tree_lengths(chances: Sequence[float], nodes: int) -> list[float]:
    """Tokens per verification of the most probable connected tree of 0, 1, ..., `nodes` drafted tokens, where the k-th
    candidate after each is right with probability chances[k]: the target's own, and each of the tree's with its
    probability.

    Also the speedup of an asynchronous tree (one verification in flight, drafts always ready).
    """
    found, heap = [1.0], [(-chances[0], 0, 1.0)]
    for _ in range(nodes):
        negative, rank, parent = heappop(heap)
        found.append(found[-1] - negative)
        heappush(heap, (negative * chances[0], 0, -negative))
        if rank + 1 < len(chances):
            heappush(heap, (-parent * chances[rank + 1], rank + 1, parent))
    return found
