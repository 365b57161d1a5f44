"""Python processes that run what this one runs: the same modules from the same places, whatever lies in the folder."""

import os
import sys

from pipeinfer.runtime.processor_quota import usable_cores

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""One BLAS thread per rank unless the environment says otherwise: ranks share this machine's cores."""

BRIEF_WAITS = {"GOMP_SPINCOUNT": "1000"}
"""How often a thread of GNU's OpenMP looks whether the others are done before it sleeps: for some tens of microseconds,
as long as a rank looks for a message. Its own 3 to 15 ms are taken, between two runs and at each node of a graph, from
whoever it waits for."""


def python_command(module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS` without the working directory among the places where modules are looked for. To be
    run in `python_environment()`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environment(ranks: int = 0) -> dict[str, str]:
    """This environment, and this process's own places to look for modules, in their order. So many `ranks` are to be
    started in it: where they share the cores, this process taking one too, their threads wait briefly unless the
    environment says how they wait."""
    brief = BRIEF_WAITS if ranks >= usable_cores() and "OMP_WAIT_POLICY" not in os.environ else {}
    places = [place or os.getcwd() for place in sys.path]  # "" is the working directory, of interactive sessions
    return {**ONE_THREAD, **brief, **os.environ, "PYTHONPATH": os.pathsep.join(places)}
