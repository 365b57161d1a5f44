"""Checks that all ranks of a model, and the head if it has the files, hold the same weights."""

from collections.abc import Iterable, Mapping

from pipeinfer.errors import LaunchError
from pipeinfer.runtime.control import Ready, Setup

Digests = Mapping[str, str]
"""File name to fingerprint (`pipeinfer.engine.fingerprint`)."""


def check_weights(ranks: Iterable[tuple[Setup, Ready]], heads: Mapping[str, Digests]) -> None:
    """Compare what ranks have of each model with one another and with the head's own (`heads`, by model).

    Files that only one of them has are not compared. Raises LaunchError.
    """
    found = {(model, file): (digest, "the head") for model, files in heads.items() for file, digest in files.items()}
    for setup, ready in ranks:
        who = f"rank {setup.rank} on {ready.host}"
        for file, digest in ready.weights.items():
            first, whose = found.setdefault((setup.model, file), (digest, who))
            if digest != first:
                raise LaunchError(f"{who} has other weights in {file} of {setup.model} than {whose}: copy the same"
                                  " files to every host")  # fmt: skip
