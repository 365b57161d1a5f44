"""A timeline: what each rank computed when, as Chrome trace events that chrome://tracing and Perfetto open."""

from collections.abc import Iterable

import msgspec


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Rank `rank` was busy with `name` from `start` to `end` (seconds); `aborted`: it was cancelled there.

    A span of no length is something that the head did: a commit, a cancellation.
    """

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
    events += [_event(span) for span in spans]
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _event(span: Span) -> dict[str, object]:
    event: dict[str, object] = {
        "pid": 0, "tid": span.rank, "name": span.name, "cat": span.name.split()[0], "ts": span.start * 1e6,
    }  # fmt: skip
    if span.end == span.start:
        return {**event, "ph": "i", "s": "t"}
    event |= {"ph": "X", "dur": (span.end - span.start) * 1e6, "args": {"aborted": span.aborted}}
    return {**event, "cname": "terrible"} if span.aborted else event
