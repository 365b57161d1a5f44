"""The cores of one host in virtual time, shared by the ranks that live there: processor sharing."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Schedule = Callable[..., None]
"""`schedule(when, action, *arguments)`: have something done in virtual time."""


class _Work(NamedTuple):
    """`due`: how much service the host will have given when this is done."""

    due: float
    action: Callable[..., Any]
    arguments: tuple[Any, ...]


class Cores:
    """While k pieces of work are under way each progresses at 1 / slowdown[k - 1]; beyond the list, as it went on last.

    `service` is what a piece that has been there all the time has got, in seconds of a host to itself: a piece that
    starts at service v and takes s seconds ends when the service is v + s, whoever comes and goes meanwhile.
    """

    def __init__(self, slowdown: Sequence[float], schedule: Schedule) -> None:
        self._slowdown = tuple(slowdown)
        self._schedule = schedule
        self._work: dict[int, _Work] = {}
        self._serial = 0
        self._change = 0
        self._service = 0.0
        self._now = 0.0

    def start(self, now: float, seconds: float, action: Callable[..., Any], *arguments: Any) -> int:
        """Have `action` called when `seconds` of work are done; a ticket for `stop`."""
        self._advance(now)
        self._serial += 1
        self._work[self._serial] = _Work(self._service + seconds, action, arguments)
        self._plan()
        return self._serial

    def stop(self, now: float, ticket: int) -> float:
        """Give this work up; the seconds of it that were left."""
        self._advance(now)
        left = self._work.pop(ticket).due - self._service
        self._plan()
        return max(0.0, left)

    def _advance(self, now: float) -> None:
        self._service += (now - self._now) / self._pace()
        self._now = now

    def _pace(self) -> float:
        """Seconds that pass per second of service."""
        slowdown, beyond = self._slowdown, len(self._work) - len(self._slowdown)
        if beyond <= 0:
            return slowdown[max(len(self._work), 1) - 1]
        return slowdown[-1] + beyond * (slowdown[-1] - slowdown[-2] if len(slowdown) > 1 else 0.0)

    def _plan(self) -> None:
        """Come back when the next piece ends, unless something changes before."""
        self._change += 1
        if self._work:
            ticket = min(self._work, key=self._due)
            left = max(0.0, self._work[ticket].due - self._service)
            self._schedule(self._now + left * self._pace(), self._end, self._change, ticket)

    def _due(self, ticket: int) -> tuple[float, int]:
        return self._work[ticket].due, ticket

    def _end(self, change: int, ticket: int) -> Any:
        if change != self._change:
            return None
        work = self._work[ticket]
        # To the last digit, so that rounding leaves nothing of it over.
        self._now += max(0.0, work.due - self._service) * self._pace()
        self._service = max(self._service, work.due)
        del self._work[ticket]
        self._plan()
        return work.action(*work.arguments)
