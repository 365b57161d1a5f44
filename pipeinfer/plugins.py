"""Plug-ins are entry points: `pipeinfer.backends`, `.strategies` and `.drafting` by name, `pipeinfer.transports` by URI
scheme.

Nothing is imported before it is named. The project's own plug-ins come through the same door as anyone's.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Hashable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from pipeinfer.errors import one_line

BACKENDS = "pipeinfer.backends"
TRANSPORTS = "pipeinfer.transports"
STRATEGIES = "pipeinfer.strategies"
DRAFTING = "pipeinfer.drafting"
GROUPS = (BACKENDS, TRANSPORTS, STRATEGIES, DRAFTING)


class UnknownPlugin(ValueError):  # noqa: N818 - reads as what happened
    """No plug-in has that name; the text is one line that lists the ones there are."""


class BrokenPlugin(ImportError):  # noqa: N818 - reads as what happened
    """The plug-in is installed but does not load; the text is one line that says what to install."""


class Plugin(NamedTuple):
    """One line of `pipeinfer plugins`. `state` is "ok" or why it does not load."""

    group: str
    name: str
    distribution: str
    version: str
    state: str


def names(group: str) -> list[str]:
    """Names of the installed plug-ins of a group."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """The object behind a plug-in's name. Raises UnknownPlugin or BrokenPlugin."""
    return _found(group, name, tuple(sys.path))


@cache
def _found(group: str, name: str, _path: tuple[str, ...]) -> Any:
    """Looked up once while what is installed is looked for in the same places: a rank asks six times as it starts, and
    a sweep opens thousands."""
    points = list(entry_points(group=group, name=name))
    if not points:
        raise UnknownPlugin(_not_installed(group, name))
    if len({point.value for point in points}) > 1:
        offers = " and ".join(sorted(_distribution(point)[0] for point in points))
        raise BrokenPlugin(f'{_kind(group)} "{name}" is offered by {offers}; uninstall all but one')
    return _load(points[0])


def open_backend(name: str, options: dict[str, Any], *, rank: int | None = None) -> Any:
    """A compute backend (`pipeinfer.engine.backend.Backend`) with its own options; one that has an option `rank` is
    told the rank that it is opened on. Raises ValueError on a wrong option."""
    if rank is not None and "rank" in inspect.signature(load(BACKENDS, name)).parameters:
        options = {"rank": rank, **options}
    return _construct(BACKENDS, name, options)


def open_strategy(name: str, options: dict[str, Any]) -> Any:
    """A strategy (`pipeinfer.core.generation.Strategy`) with its options, which is told by what name it goes. Raises
    ValueError on a wrong option."""
    strategy = _construct(STRATEGIES, name, options)
    strategy.name = name
    return strategy


def open_drafting(name: str, options: dict[str, Any]) -> Any:
    """A draft policy (`pipeinfer.core.draft.DraftPolicy`) with its options. Raises ValueError on a wrong one."""
    return _construct(DRAFTING, name, options)


def installed() -> list[Plugin]:
    """Every plug-in of every group. Imports each, to learn its state."""
    return [
        Plugin(group, point.name, *_distribution(point), _state(point))
        for group in GROUPS
        for point in sorted(entry_points(group=group), key=lambda point: point.name)
    ]


def _construct(group: str, name: str, options: dict[str, Any]) -> Any:
    factory = load(group, name)
    who = f'{_kind(group)} "{name}"'
    signature = _signature(factory)
    known = signature.parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for option, value in options.items():
        if option in known:
            _check_type(who, option, value, known[option].annotation)
        elif not anything:
            raise ValueError(_unknown(f'{who} has no option "{option}"', option, list(known), "its options"))
    try:
        signature.bind(**options)
    except TypeError as problem:
        raise ValueError(f"{who}: {problem}") from None
    return factory(**options)  # where a TypeError is a fault of its own, and shows where it is


@cache
def _signature(factory: Any) -> inspect.Signature:
    """Its annotations are text that has to be evaluated, which takes longer than all else here."""
    return inspect.signature(factory, eval_str=True)


def _check_type(who: str, option: str, value: Any, expected: Any) -> None:
    """Text where a number or a switch is expected would be taken for true, or fail far from here."""
    kinds: dict[Any, Any] = {bool: bool, int: int, float: int | float, str: str, str | None: str | None}
    fitting = kinds.get(expected) if isinstance(expected, Hashable) else None
    if fitting is not None and (not isinstance(value, fitting) or (isinstance(value, bool) and expected is not bool)):
        names = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"{who}: {option} = {value}: expected {names.get(expected, 'text')}")


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as problem:  # whatever a stranger's module raises when imported
        reason = _explained(problem) + _remedy(point, problem)
        raise BrokenPlugin(f'{_kind(point.group)} "{point.name}" does not load: {reason}') from problem


def _state(point: EntryPoint) -> str:
    try:
        point.load()
    except ModuleNotFoundError as problem:
        return f"missing {problem.name}{_remedy(point, problem)}"
    except Exception as problem:  # as above
        return f"broken: {_explained(problem)}"
    return "ok"


def _remedy(point: EntryPoint, problem: Exception) -> str:
    """What to install when a module is missing: the extra named like the plug-in, or the one that requires it."""
    if not isinstance(problem, ModuleNotFoundError) or problem.name is None or point.dist is None:
        return ""
    if problem.name == point.module.partition(".")[0]:
        return f"; reinstall {point.dist.name}"
    module = problem.name.partition(".")[0]
    extras = point.dist.metadata.get_all("Provides-Extra") or []
    requirements = [_requirement(line) for line in point.dist.requires or []]
    fitting = [extra for extra in extras if extra == point.name or (module, extra) in requirements]
    fitting.sort(key=lambda extra: extra != point.name)
    wanted = f"{point.dist.name}[{fitting[0]}]" if fitting else module
    return f"; run `pip install {wanted}`"


def _requirement(line: str) -> tuple[str, str]:
    """Module-like name and extra of a line such as `torch>=2.5; extra == "torch"`."""
    name = re.match(r"[\w.-]*", line)
    extra = re.search(r"extra\s*==\s*[\"']([^\"']+)", line)
    return (name.group().replace("-", "_") if name else "", extra.group(1) if extra else "")


def _not_installed(group: str, name: str) -> str:
    there = names(group)
    if not there:
        return f'no {_kind(group)} "{name}": PipeInfer itself is not installed; run `pip install -e .` in the checkout'
    return _unknown(f'no {_kind(group)} "{name}"', name, there, "installed")


def _unknown(what: str, name: str, there: list[str], title: str) -> str:
    close = difflib.get_close_matches(name, there, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else ";"
    return f"{what}{hint} {title}: {', '.join(there) or 'none'}"


def _kind(group: str) -> str:
    return {BACKENDS: "backend", TRANSPORTS: "transport", STRATEGIES: "strategy", DRAFTING: "draft policy"}[group]


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("?", "?")


def _explained(problem: Exception) -> str:
    return one_line(f"{type(problem).__name__}: {problem}")
