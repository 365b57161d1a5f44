"""When a rank was lost: who takes its place, and what is left to plan with where nobody can.

Ranks that were started here are started again. Of workers that run by themselves those take part that answer: the ones
that were left, in the place of a lost one a spare, or else the lost one itself if it is there again. Where that is not
enough, the target's layers are split anew over fewer ranks, or it goes on without a draft.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from pipeinfer.cluster.contact import CHECK_S, Contact
from pipeinfer.cluster.inspection import inspections
from pipeinfer.cluster.models import Models
from pipeinfer.cluster.plan import AUTO, FITTING, Plan
from pipeinfer.errors import LaunchError, RankLost, RankRefuses
from pipeinfer.runtime.control import Inspected
from pipeinfer.runtime.transports import TransportError, facing, scheme_of

ROLL_S = 5.0
"""How long workers have to answer. Those of a session that broke take a moment to leave it."""

LATE_S = 2.0
"""How long one that was lost has to come back, where all others have answered."""

MEET_S = 15.0
"""How long spares have at first, who may have to load an engine before they can say what memory is free."""

_log = logging.getLogger(__name__)


class Recovery:
    """Plans for what is left of a session that was first planned as that of `models`."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._plan = models.plan
        self._stages = len(models.split)
        self._places: list[str | None] = [address.strip() for address in models.plan.workers]
        """By rank of the first plan; None: nobody is left for it."""
        self._standby = [address.strip() for address in models.plan.spares]
        self._unfit: set[str] = set()

    def plans(self, lost: str | None) -> list[Plan]:
        """What to try, best first, once the worker at the address `lost` was lost. Raises LaunchError where nobody is
        left."""
        if not self._plan.workers:
            alone = [msgspec.structs.replace(self._plan, draft=None, draft_layers=None)] if self._plan.draft else []
            return [self._plan, self._plan, *alone]  # Twice: a process may be killed while it comes up.
        self._fill_places(lost)
        return self._over_workers()

    def meet_spares(self) -> None:
        """Say which of them do not answer. Raises TransportError on what is no address."""
        count = len(self._standby)
        for spare in self._standby:
            facing(spare)
        there = roll_call(self._models, self._standby, lambda found: MEET_S * (len(found) < count))
        for spare in self._standby:
            if spare not in there:
                _log.warning("the spare worker at %s does not answer; it is asked again when a rank is lost", spare)

    def refuse(self, address: str) -> None:
        """The worker there answers, but cannot do what it is to do."""
        self._unfit.add(address)

    def lacks(self, now: Models) -> str:
        """What the session lacks that it had at first, in words."""
        left = len(now.split)
        fewer = f"on {left} {'stage' if left == 1 else 'stages'} instead of {self._stages}" * (left < self._stages)
        alone = "without a draft" if self._models.draft is not None and now.draft is None else ""
        return ", ".join(filter(None, [alone, fewer]))

    def _fill_places(self, lost: str | None) -> None:
        """Ask who is there, and give each place that has become free to the first who waits for one."""
        known = [found for found in (*filter(None, self._places), *self._standby) if found not in self._unfit]
        unknown = {found for found in known if not has_a_way(found)}
        left = {found for found in self._places if found in known and found not in (lost, *unknown)}
        others = set(known) - left - unknown - {lost}

        def patience(there: set[str]) -> float:
            if left <= there and len(there) >= len(self._places):
                return 0
            return ROLL_S if (left | others) - there else LATE_S

        there = roll_call(self._models, [found for found in known if found not in unknown], patience)
        kept = [found if found in left & there else None for found in self._places]
        waiting = [found for found in known if found not in kept]
        waiting.sort(key=lambda found: (found not in there, found == lost))
        for place, found in enumerate(kept):
            if found is None and waiting and waiting[0] in there:
                kept[place] = waiting.pop(0)
        self._places, self._standby = kept, waiting

    def _over_workers(self) -> list[Plan]:
        stages = [found for found in self._places[: self._stages] if found]
        drafts = [found for found in self._places[self._stages :] if found]
        plans = []
        if drafts and len(drafts) == len(self._places) - self._stages and stages:
            plans.append(self._plan_of(stages, drafts))
        if alone := [*stages, *drafts][: self._stages]:
            plans.append(self._plan_of(alone, []))
        if not plans:
            raise LaunchError("no worker is left that answers: start some, and then this again")
        return plans

    def _plan_of(self, stages: Sequence[str], drafts: Sequence[str]) -> Plan:
        plan = self._plan
        if len(stages) < self._stages:
            layers = AUTO if plan.layers == AUTO else FITTING
            plan = msgspec.structs.replace(plan, stages=len(stages), layers=layers, profile=None)
        if not drafts:
            plan = msgspec.structs.replace(plan, draft=None, draft_layers=None)
        return msgspec.structs.replace(plan, workers=(*stages, *drafts))


def has_a_way(address: str) -> bool:
    """Whether this host knows at present where that is: names may be known again later."""
    try:
        facing(address)
    except TransportError as problem:
        _log.warning("the worker at %s: %s", address, problem)
        return False
    return True


def roll_call(models: Models, addresses: Sequence[str], patience: Callable[[set[str]], float]) -> set[str]:
    """Who of the workers at these addresses answers, within `patience` seconds from the beginning, by who has so far.
    They are let go of, and wait for their next head."""
    if not addresses:
        return set()
    contact = Contact(scheme_of(addresses[0]), len(addresses), tuple(addresses), models.plan.key)
    try:
        return _who_answers(contact, models, addresses, patience)
    finally:
        # What was sent to those who do not answer has a moment to leave, for which nobody waits.
        threading.Thread(target=contact.close, name="roll call").start()


def _who_answers(
    contact: Contact, models: Models, addresses: Sequence[str], patience: Callable[[set[str]], float]
) -> set[str]:
    there: set[str] = set()
    start = time.monotonic()
    for rank, inspect in inspections(models, len(addresses), contact.transport.address, limited=False).items():
        contact.transport.connect(rank, addresses[rank])
        contact.send(rank, inspect)
    while time.monotonic() - start < patience(there):
        try:
            message = contact.receive(CHECK_S)
        except RankLost:
            continue  # It does not answer.
        except RankRefuses as refusal:
            _log.warning("the worker at %s: %s", addresses[refusal.rank], refusal)
            continue
        if isinstance(message, Inspected):
            there.add(addresses[message.rank])
    return there
