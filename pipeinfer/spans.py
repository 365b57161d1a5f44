"""A timeline: what each rank computed when, as Chrome trace events that chrome://tracing and Perfetto open."""

from collections.abc import Iterable

import msgspec


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Rank `rank` was busy with `name` from `start` to `end` (seconds); `aborted`: it was cancelled there."""

    rank: int
    name: str
    start: float
    end: float
    aborted: bool = False


def chrome_trace(spans: Iterable[Span], names: dict[int, str]) -> bytes:
    """Trace Event Format JSON; `names` labels the ranks."""
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": name}}
        for rank, name in names.items()
    ]
    events += [
        {
            "ph": "X", "pid": 0, "tid": span.rank, "name": span.name, "cat": span.name.split()[0],
            "ts": span.start * 1e6, "dur": (span.end - span.start) * 1e6,
            "args": {"aborted": span.aborted}, "cname": "terrible" if span.aborted else None,
        }
        for span in spans
    ]  # fmt: skip
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})
