"""From what a user asks for to recipes: which of them, at which fidelity, on which cluster, over which ranks."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from pipeinfer import workload
from pipeinfer.reproduce.artifact import with_artifact
from pipeinfer.reproduce.cells import check_simulated, distinct
from pipeinfer.reproduce.recipes import (
    ARTIFACT,
    Artifact,
    Checked,
    Emulation,
    Recipe,
    SimCell,
    Site,
    cells,
    emulated,
    points,
    read_recipe,
    recipe_names,
)
from pipeinfer.workload import WorkloadError

ORDER = ("live", "slow", "timeline", "speed", "pairs", "width", "accounting")
"""What is run first; other recipes follow by name."""

FIDELITIES = ("sim", "emulated", "real")


class Wish(msgspec.Struct, frozen=True):
    """What recipes are changed to: see the options of `pipeinfer reproduce`. `live` are fields of `Live`; `ranks` is
    how many there are, where that is given from outside."""

    fidelity: str | None = None
    cluster: str | None = None
    live: dict[str, Any] = {}
    ranks: int | None = None
    artifact: Artifact | None = None


class Selected(NamedTuple):
    """Recipes to run, and what a user should know of what was left out."""

    recipes: list[Recipe]
    notes: list[str]


def select(names: Iterable[str], wish: Wish) -> Selected:
    """The recipes of these names (none: all) as wished. Raises WorkloadError."""
    if wish.fidelity not in (None, *FIDELITIES):
        raise WorkloadError(f'fidelity "{wish.fidelity}": expected one of {", ".join(FIDELITIES)}')
    if wish.cluster is not None:
        if wish.cluster.endswith(".json"):
            raise WorkloadError(
                f"--cluster {wish.cluster}: recipes are of models that a calibrated cluster does not hold; expected a "
                "name or a TOML file, or use `pipeinfer simulate --cluster`"
            )
        workload.cluster(wish.cluster)
    asked = list(dict.fromkeys(names)) or sorted(recipe_names(), key=lambda name: (*ORDER, name).index(name))
    asked += [ARTIFACT] if wish.artifact is not None and ARTIFACT not in asked else []
    found = [wished for recipe in map(read_recipe, asked) if (wished := _at(recipe, wish)) is not None]
    if not found:
        raise WorkloadError(f"none of {', '.join(asked)} has fidelity {wish.fidelity}")
    if wish.cluster is not None and all(recipe.simulated is None for recipe in found):
        raise WorkloadError(f"--cluster {wish.cluster}: {', '.join(asked)} would really be run, where this runs")
    return _fitting(found, wish.ranks) if wish.cluster is not None or wish.ranks is not None else Selected(found, [])


def _at(recipe: Recipe, wish: Wish) -> Recipe | None:
    """The recipe at the fidelity that was asked for, if it has that."""
    replace = msgspec.structs.replace
    if recipe.live is not None:
        predicted = recipe.live.predicted and not {"workers", "transport"} & set(wish.live)
        recipe = replace(recipe, live=replace(recipe.live, **wish.live, predicted=predicted))
        if wish.fidelity not in (None, "real"):
            return None
        return with_artifact(recipe, wish.artifact) if recipe.name == ARTIFACT and wish.artifact else recipe
    if recipe.checked is not None:
        return _checked(recipe, recipe.checked, wish) if wish.fidelity in (None, "real") else None
    if wish.fidelity == "emulated" and recipe.emulated is not None:
        over = {name: value for name, value in wish.live.items() if name in Emulation.__struct_fields__}
        recipe = emulated(recipe, Emulation(**over))
    elif wish.fidelity not in (None, "sim"):
        return None
    if wish.cluster is not None and recipe.simulated is not None:
        recipe = replace(recipe, simulated=replace(recipe.simulated, clusters=[wish.cluster]))
    return recipe


def _checked(recipe: Recipe, check: Checked, wish: Wish) -> Recipe:
    """With another backend or other models; it starts its own ranks."""
    over = {name: value for name, value in wish.live.items() if name in ("target", "draft")}
    if "backend" in wish.live:
        over["backends"] = {wish.live["backend"]: wish.live.get("backend_options", {})}
    return msgspec.structs.replace(recipe, checked=msgspec.structs.replace(check, **over))


def _fitting(recipes: list[Recipe], ranks: int | None) -> Selected:
    """Without the points that are impossible there; a note for each. Raises WorkloadError when nothing is left."""
    left, notes, refusals = [], [], []
    for recipe in recipes:
        impossible = _impossible(recipe, ranks)
        fitting = msgspec.structs.replace(recipe, left_out=tuple(impossible))
        problems = list(dict.fromkeys(impossible.values()))
        if not points(fitting):
            refusals.append(f"recipe {recipe.name}: {problems[0]}")
            continue
        left.append(fitting)
        notes += [f"{recipe.name}: left out {_site(site)}: {problem}" for site, problem in impossible.items()]
    if not left:
        raise WorkloadError(refusals[0])
    return Selected(left, notes + [f"left out: {refusal}" for refusal in refusals])


def _impossible(recipe: Recipe, ranks: int | None) -> dict[Site, str]:
    """The points of a sweep that cannot be, and why. A point where one strategy has no room has nothing to compare."""
    found: dict[Site, str] = {}
    for cell in distinct(cell for cell in cells(recipe) if isinstance(cell, SimCell)):
        site = Site(cell.cluster, cell.pair, cell.setting.nodes, cell.setting.accounting)
        needed = site.nodes + (site.accounting == "as-published") if recipe.emulation else 0
        if ranks is not None and needed > ranks:
            found[site] = f"{needed} ranks are needed, and there are {ranks}"
        elif site not in found:
            try:
                check_simulated([cell])
            except WorkloadError as problem:
                found[site] = str(problem)
    return found


def _site(site: Site) -> str:
    published = f", {site.accounting}" * (site.accounting != "same-ranks")
    return f"{site.pair} on {site.nodes} nodes{published}"
