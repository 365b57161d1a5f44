"""The report's last part, in the terms of an artifact-evaluation appendix: claims and experiments, what each needs and
how it is run, what was found to take how long, where, and from which command."""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from pipeinfer.reproduce.recipes import Recipe, cells
from pipeinfer.reproduce.records import FILE, Record, Store, config_hash, environment
from pipeinfer.reproduce.report import Block, Code, Heading, Paragraph, Table

HOW_TO = """\
pipeinfer reproduce                                   # every experiment: simulated, and the live table on this machine
pipeinfer reproduce NAME ...                          # some of them
pipeinfer reproduce --fidelity emulated               # a part of each sweep in real time, beside its simulation
pipeinfer reproduce --cluster FILE.toml               # the sweeps on a cluster of your own
pipeinfer reproduce --cluster FILE.json               # the sweeps on a cluster that `pipeinfer calibrate` measured
mpirun -n 5 pipeinfer reproduce live                  # the live table over the ranks of an MPI world
pipeinfer reproduce live --workers ADDRESSES --key FILE --backend torch --target MODEL --draft MODEL
pipeinfer reproduce --replot                          # figures and report anew from the records; nothing is run
"""


def appendix(recipes: Sequence[Recipe], store: Store) -> Iterator[Block]:
    """Experiments, commands, environment and data."""
    yield Heading("Appendix: artifact evaluation")
    yield Heading("Experiments", 3)
    yield Paragraph("Minutes are those of the whole experiment at its own fidelity, on the hardware named; beside them "
                    "what its cells took here, one after another.")  # fmt: skip
    kept = [_records(recipe, store) for recipe in recipes]
    yield _experiments(recipes, kept)
    yield Heading("How to run them", 3)
    yield Paragraph("This report was made by the first line; the others are the ways there are. All of them add to "
                    f"{FILE} in the folder of --out, run only what is not in it yet, and write the report of what was "
                    "asked for.")  # fmt: skip
    yield Code(shlex.join(["pipeinfer", *sys.argv[1:]]) + "\n\n" + HOW_TO.rstrip())
    yield Heading("Environment", 3)
    found = {**environment(), **_ranks(chain.from_iterable(kept))}
    yield Table(["", ""], [[name, str(value)] for name, value in found.items()])
    yield Heading("Data", 3)
    seconds = sum(record.seconds for record in store.records.values())
    yield Paragraph(
        f"{len(store.records)} trials in {FILE} took {seconds:.0f} s of computing. Each line is one trial: its "
        "configuration and the hash of it, environment, seed, token ids, the time of each token, its runs and its "
        "ranks. Every figure and table above is derived from that file, and is drawn anew from it by the same command."
    )


def _experiments(recipes: Sequence[Recipe], kept: Sequence[list[Record]]) -> Table:
    head = ["experiment", "claims", "fidelity", "expected", "hardware", "minutes", "here, s", "cells", "done"]
    return Table(head, list(map(_row, recipes, kept)), numbers=range(5, 9))


def _row(recipe: Recipe, done: list[Record]) -> list[str]:
    return [
        recipe.name,
        ", ".join(recipe.claims) or "-",
        recipe.fidelity,
        recipe.expected,
        recipe.hardware,
        f"{_minutes(recipe, done):.2g}",
        f"{sum(record.seconds for record in done):.0f}",
        str(len(cells(recipe))),
        str(sum(record.trial is not None or record.rehearsed is not None for record in done)),
    ]


def _minutes(recipe: Recipe, done: list[Record]) -> float:
    """What the recipe says; an emulated one takes as long as the generations of its simulation."""
    if recipe.emulation is None:
        return recipe.minutes
    return sum(record.trial.emit_s[-1] for record in done if record.fidelity == "sim" and record.trial) / 60


def _records(recipe: Recipe, store: Store) -> list[Record]:
    hashes = map(config_hash, cells(recipe))
    return [store.records[name] for name in hashes if name in store.records]


def _ranks(records: Iterable[Record]) -> dict[str, str]:
    """The hosts of ranks that really ran."""
    ranks = [rank for record in records if record.trial is not None for rank in record.trial.ranks]
    hosts = sorted({rank.host for rank in ranks if rank.host})
    return {"hosts of the ranks": ", ".join(hosts)} if hosts else {}
