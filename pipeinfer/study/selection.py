"""From what a user asks for to recipes: which of them, at which fidelity, on which cluster, over which ranks."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from pipeinfer.modelling.platform import calibrated_platform, is_calibrated, platform_of
from pipeinfer.prompt_sets import looks_random, prompt_named
from pipeinfer.study.artifact import with_artifact
from pipeinfer.study.cells import check_simulated, distinct
from pipeinfer.study.loads import check_loads
from pipeinfer.study.peers import with_peers
from pipeinfer.study.points import LoadCell, SimCell, cells, points
from pipeinfer.study.recipes import (
    ARTIFACT,
    PEERS,
    Artifact,
    Checked,
    Emulation,
    Recipe,
    Simulated,
    Site,
    emulated,
    read_recipe,
    recipe_names,
)
from pipeinfer.workload import WorkloadError

ORDER = ("live", "slow", "timeline", "speed", "pairs", "width", "accounting")
"""What is run first; other recipes follow by name."""

FIDELITIES = ("sim", "emulated", "real")

NAMED = 3
"""Prompts that a note names."""


class Wish(msgspec.Struct, frozen=True):
    """What recipes are changed to: see the options of `pipeinfer reproduce`. `live` are fields of `Live`; `ranks` is
    how many there are, where that is given from outside."""

    fidelity: str | None = None
    cluster: str | None = None
    live: dict[str, Any] = {}
    ranks: int | None = None
    artifact: Artifact | None = None
    llama_cpp: str | None = None


class Selected(NamedTuple):
    """Recipes to run, and what a user should know of what was left out."""

    recipes: list[Recipe]
    notes: list[str]


def select(names: Iterable[str], wish: Wish) -> Selected:
    """The recipes of these names (none: all) as wished. Raises WorkloadError."""
    if wish.fidelity not in (None, *FIDELITIES):
        raise WorkloadError(f'fidelity "{wish.fidelity}": expected one of {", ".join(FIDELITIES)}')
    if wish.cluster is not None:
        platform_of(wish.cluster)
    asked = list(dict.fromkeys(names)) or sorted(recipe_names(), key=lambda name: (*ORDER, name).index(name))
    recipes = list(map(read_recipe, asked))
    if wish.llama_cpp is not None and not any(recipe.beside_llama_cpp for recipe in recipes):
        recipes.append(read_recipe(PEERS))
    if wish.artifact is not None and not any(recipe.beside_artifact for recipe in recipes):
        recipes.append(read_recipe(ARTIFACT))
    refusals = {recipe.name: problem for recipe in recipes if (problem := _beyond(recipe, wish.cluster))}
    left = [recipe for recipe in recipes if recipe.name not in refusals]
    found = [wished for recipe in left if (wished := _at(recipe, wish)) is not None]
    if not found and not refusals:
        raise WorkloadError(f"none of {', '.join(asked)} has fidelity {wish.fidelity}")
    if wish.cluster is not None and not refusals and all(recipe.simulated is None for recipe in found):
        raise WorkloadError(f"--cluster {wish.cluster}: {', '.join(asked)} would really be run, where this runs")
    if wish.cluster is None and wish.ranks is None:
        return Selected(found, list(_unfit(found)))
    selected = _fitting(found, wish.ranks, [f"recipe {name}: {problem}" for name, problem in refusals.items()])
    more = [*_apart(selected.recipes, wish.cluster), *_unfit(selected.recipes)]
    return selected._replace(notes=[*selected.notes, *more])


def _unfit(recipes: list[Recipe]) -> Iterator[str]:
    """What prompts can say nothing of speculation."""
    for recipe in (one for one in recipes if one.live is not None):
        assert recipe.live is not None
        if recipe.live.backend == "emulated":
            yield f"{recipe.name}: the emulated backend has no text; its drafts are right as often as it was told"
        odd = [name for name in recipe.live.prompts if looks_random(prompt_named(name).text)]
        if odd:
            yield (
                f"{recipe.name}: {len(odd)} of {len(recipe.live.prompts)} prompts look like decoded random tokens "
                f"({', '.join(odd[:NAMED])}): drafts are hardly ever right on such texts, and speeds over them say "
                "nothing of real ones"
            )


def _apart(recipes: list[Recipe], cluster: str | None) -> list[str]:
    """What emulated ranks do otherwise than those of a calibrated cluster."""
    if cluster is None or not is_calibrated(cluster) or not any(recipe.emulation for recipe in recipes):
        return []
    profile = calibrated_platform(cluster).profile
    hosts = [rank.host for rank in profile.ranks]
    if max(profile.contention) == 1 or len(set(hosts)) == len(hosts):
        return []
    return [
        f"{cluster} has ranks that share a host: the simulation slows down those that compute at once, by up to "
        f"{max(profile.contention):.2f}, and emulated ranks each wait as long as was measured alone"
    ]


def _at(recipe: Recipe, wish: Wish) -> Recipe | None:
    """The recipe at the fidelity that was asked for, if it has that."""
    replace = msgspec.structs.replace
    if recipe.live is not None:
        predicted = recipe.live.predicted and not {"workers", "transport"} & set(wish.live)
        tuned_on = [] if "prompts" in wish.live else recipe.live.tuned_on
        recipe = replace(recipe, live=replace(recipe.live, **wish.live, predicted=predicted, tuned_on=tuned_on))
        if wish.fidelity not in (None, "real"):
            return None
        if recipe.beside_llama_cpp and wish.llama_cpp:
            return with_peers(recipe, wish.llama_cpp)
        return with_artifact(recipe, wish.artifact) if recipe.beside_artifact and wish.artifact else recipe
    if recipe.checked is not None:
        return _checked(recipe, recipe.checked, wish) if wish.fidelity in (None, "real") else None
    if wish.fidelity == "emulated" and recipe.emulated is not None:
        over = {name: value for name, value in wish.live.items() if name in Emulation.__struct_fields__}
        recipe = emulated(recipe, Emulation(**over))
    elif wish.fidelity not in (None, "sim"):
        return None
    if wish.cluster is not None and recipe.simulated is not None:
        recipe = replace(recipe, simulated=_on(recipe.simulated, wish.cluster))
    return recipe


def _on(sweep: Simulated, cluster: str) -> Simulated:
    """The sweep on another cluster; a calibrated one brings its own pair, and as many draft ranks."""
    if not is_calibrated(cluster):
        return msgspec.structs.replace(sweep, clusters=[cluster])
    where = calibrated_platform(cluster)
    return msgspec.structs.replace(sweep, clusters=[cluster], pairs=[where.pair], draft_ranks=where.draft_ranks)


def _checked(recipe: Recipe, check: Checked, wish: Wish) -> Recipe:
    """With another backend or other models; it starts its own ranks."""
    over = {name: value for name, value in wish.live.items() if name in ("target", "draft")}
    if "backend" in wish.live:
        over["backends"] = {wish.live["backend"]: wish.live.get("backend_options", {})}
    return msgspec.structs.replace(recipe, checked=msgspec.structs.replace(check, **over))


def _beyond(recipe: Recipe, cluster: str | None) -> str:
    """Why a whole recipe makes no sense on a calibrated cluster, or nothing."""
    sweep = recipe.simulated
    if cluster is None or not is_calibrated(cluster) or sweep is None:
        return ""
    if recipe.requests:
        return f"several requests at once are simulated on modelled clusters, and {cluster} was measured"
    if len(sweep.clusters) == len(sweep.pairs) == 1:
        return ""
    return f"it compares clusters or pairs, and {cluster} is one cluster with its own pair"


def _fitting(recipes: list[Recipe], ranks: int | None, refusals: list[str]) -> Selected:
    """Without the points that are impossible there; a note for each, and for each of the recipes that were refused.
    Raises WorkloadError when nothing is left."""
    left, notes = [], []
    for recipe in recipes:
        impossible = _impossible(recipe, ranks)
        fitting = msgspec.structs.replace(recipe, left_out=tuple(impossible))
        problems = list(dict.fromkeys(impossible.values()))
        if not points(fitting):
            refusals = [*refusals, f"recipe {recipe.name}: {problems[0]}"]
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
        where = platform_of(cell.cluster, cell.pair)
        if ranks is not None and needed > ranks:
            found[site] = f"{needed} ranks are needed, and there are {ranks}"
        elif where.ranks is not None and site.nodes > where.ranks:
            found[site] = f"{site.nodes} ranks are needed, and {where.ranks} were measured"
        elif site not in found:
            try:
                check_loads([cell]) if isinstance(cell, LoadCell) else check_simulated([cell])
            except WorkloadError as problem:
                found[site] = str(problem)
    return found


def _site(site: Site) -> str:
    published = f", {site.accounting}" * (site.accounting != "same-ranks")
    return f"{site.pair} on {site.nodes} nodes{published}"
