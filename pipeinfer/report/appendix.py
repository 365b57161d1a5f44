"""The report's last part, in the terms of an artifact-evaluation appendix: claims and experiments, what each needs and
how it is run, what was found to take how long, where, and from which command."""

import shlex
import sys
from collections.abc import Mapping, Sequence

import msgspec
import pandas as pd

from pipeinfer.report.claims import Claim
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.figures import figure_name
from pipeinfer.report.page import Table
from pipeinfer.results.frame import hosts_of
from pipeinfer.results.records import FILE, environment
from pipeinfer.study.points import PredictorCell, cells
from pipeinfer.study.recipes import Recipe

HOW_TO = """\
pipeinfer reproduce                                   # every experiment: simulated, and the live table on this machine
pipeinfer reproduce NAME ...                          # some of them
pipeinfer reproduce --fidelity emulated               # a part of each sweep in real time, beside its simulation
pipeinfer reproduce --cluster FILE.toml               # the sweeps on a cluster of your own
pipeinfer reproduce --cluster FILE.json               # the sweeps on a cluster that `pipeinfer calibrate` measured
mpirun -n 5 pipeinfer reproduce live                  # the live table over the ranks of an MPI world
pipeinfer reproduce live --workers ADDRESSES --key FILE --backend torch --target MODEL --draft MODEL
pipeinfer reproduce --emit slurm                      # job arrays of what is missing; --collect adds what they wrote
pipeinfer reproduce --replot                          # figures and report anew from the records; nothing is run"""


class Appendix(msgspec.Struct, frozen=True):
    """Experiments, commands, environment and data."""

    claims: Table
    experiments: Table
    command: str
    ways: str
    environment: Table
    data: str

    about_claims = (
        "Which experiment bears on which claim, and where that is drawn (files of figures/); the experiments' own "
        "figures stand with them below."
    )
    about_experiments = (
        "Setup is one for all, a minute to install the package on two cores, and what has to be there beside it. "
        "Minutes are those of the whole experiment at its own fidelity, on the hardware named; beside them what its "
        "cells took here, one after another, and its tables and figures, where they were not drawn before."
    )
    about_ways = (
        "This report was made by the first line; the others are the ways there are. All of them add to the folder of "
        "--out, run only what is not in it yet, and write the report of what was asked for."
    )


def appendix(
    by_name: Mapping[str, Experiment], analysis_s: Mapping[str, float], claims: Sequence[Claim]
) -> Appendix:
    """Of what this report is about; `analysis_s`: what tables and figures of each experiment took (s)."""
    experiments = list(by_name.values())
    hosts = sorted({host for one in experiments for host in hosts_of(one.trials)})
    found = environment() | ({"hosts of the ranks": ", ".join(hosts)} if hosts else {})
    once = pd.concat([one.trials[["config_hash", "seconds"]] for one in experiments]).drop_duplicates()
    return Appendix(
        Table(["claim", "what", "verdict", "experiments", "figure"], [_of_claim(one, experiments) for one in claims]),
        Table(
            ["experiment", "claims", "fidelity", "expected", "hardware", "setup", "minutes", "execution here, s",
             "analysis here, s", "cells", "done", "figures"],
            [_row(one, analysis_s[one.recipe.name]) for one in experiments], range(6, 11),
        ),
        shlex.join(["pipeinfer", *sys.argv[1:]]),
        HOW_TO,
        Table(["what", "here"], [[name, str(value)] for name, value in found.items()]),
        f"{len(once)} trials in {FILE} took {once.seconds.sum():.0f} s of computing. Each line is one trial: its "
        "configuration and the hash of it, environment, seed, token ids, the time of each token, its runs and its "
        "ranks. Everything above is derived from that file: the tables trials.parquet, gaps.parquet, ranks.parquet and "
        "spans.parquet, and from these every figure and number, drawn anew by the same command.",
    )  # fmt: skip


def _of_claim(claim: Claim, experiments: Sequence[Experiment]) -> list[str]:
    """Which experiments bear on it, and where that is drawn."""
    names = ", ".join(one.recipe.name for one in experiments if claim.id in one.recipe.claims)
    figure = f"{claim.figure}.svg" if claim.figure else "-"
    return [claim.id, claim.claim, claim.verdict, names or "none was run", figure]


def _row(experiment: Experiment, analysis_s: float) -> list[str]:
    recipe, done = experiment.recipe, experiment.trials[experiment.trials.status != "failed"]
    return [
        recipe.name,
        ", ".join(recipe.claims) or "-",
        recipe.fidelity,
        recipe.expected,
        recipe.hardware,
        _setup(recipe),
        f"{_minutes(experiment):.2g}",
        f"{experiment.trials.seconds.sum():.0f}",
        f"{analysis_s:.1f}",
        str(sum(not isinstance(cell, PredictorCell) for cell in cells(recipe))),
        str(len(done) + len(experiment.simulated)),
        ", ".join(f"{figure_name(recipe, figure)}.svg" for figure in recipe.figures) or "-",
    ]


def _setup(recipe: Recipe) -> str:
    """What has to be there beside the installed package."""
    if recipe.artifact is not None:
        return "llama.cpp's programs, built" if recipe.beside_llama_cpp else "the authors' programs, built"
    live = recipe.live
    own = live is not None and any(not model.startswith("builtin:") for model in (live.target, live.draft))
    there = ["running workers"] * (live is not None and bool(live.workers)) + ["your models"] * own
    return ", ".join(there) or "none"


def _minutes(experiment: Experiment) -> float:
    """What the recipe says; an emulated one takes as long as the generations of its simulation."""
    if experiment.recipe.emulation is None:
        return experiment.recipe.minutes
    return float(experiment.simulated.duration_s.sum()) / 60
