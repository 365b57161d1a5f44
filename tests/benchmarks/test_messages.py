"""What a message costs before and after the wire: encoding and decoding its header, beside copying as many bytes; and
what a rank does with a run from its header to its successor's send, but for computing it.

pytest tests/benchmarks/test_messages.py --benchmark-only
"""

from statistics import median
from typing import Any

import pytest

from pipeinfer.core.messages import CancelRun, Decode, DraftFrom, DraftNode, KvSeqCp, KvSeqRm, Logits, Proposal, RunKind
from pipeinfer.runtime.control import decode, encode
from pipeinfer.runtime.message_overhead import run_handling_s

PROMPT = tuple(range(64))
MESSAGES = {
    "prompt of 64 tokens": Decode(0, RunKind.PROMPT, PROMPT, PROMPT, ((0,),) * 64, 1),
    "single-token run": Decode(7, RunKind.SINGLE, (11,), (80,), ((0,),), 1, (), -1, (0.01,) * 3),
    "speculative run": Decode(
        8, RunKind.SPECULATIVE, (1, 2, 3), (81, 82, 83), ((5,),) * 3, 3, (KvSeqCp(0, 5, 0, 81), KvSeqRm(4, 0, -1))
    ),
    "result": Logits(8, (1, 2, 3), (), -1, (0.01,) * 8),
    "cancellation": CancelRun((9, 10, 11)),
    "order": DraftFrom(3, (1, 2), 90),
    "proposal": Proposal(3, tuple(DraftNode(i, i - 1, 5, 0.8) for i in range(3)), stalled=False),
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.benchmark(group="encode")
def test_encode(benchmark: Any, name: str) -> None:
    benchmark(encode, MESSAGES[name])


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.benchmark(group="decode")
def test_decode(benchmark: Any, name: str) -> None:
    assert benchmark(decode, encode(MESSAGES[name])) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.benchmark(group="copy")
def test_copy(benchmark: Any, name: str) -> None:
    """What no encoding goes below."""
    benchmark(bytearray, encode(MESSAGES[name]))


@pytest.mark.parametrize(("rows", "width"), [(1, 256), (2, 256), (8, 4096)])
@pytest.mark.benchmark(group="handling of 400 runs")
def test_handling(benchmark: Any, rows: int, width: int) -> None:
    """Printed is what one takes: the median of them, and of five times these."""
    found: list[float] = []
    benchmark.pedantic(lambda: found.append(run_handling_s(rows, width)), rounds=5)
    benchmark.extra_info["run_us"] = 1e6 * median(found)
    print(f"\n{rows} rows of width {width}: {1e6 * median(found):.1f} us a run", end="")
