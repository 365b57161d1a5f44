"""Python processes that run what this one runs: the same modules from the same places, whatever lies in the folder."""

import os
import sys

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""One BLAS thread per rank unless the environment says otherwise: ranks share this machine's cores."""


def python_command(module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS` without the working directory among the places where modules are looked for. To be
    run in `python_environment()`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environment() -> dict[str, str]:
    """This environment, and this process's own places to look for modules, in their order."""
    places = [place or os.getcwd() for place in sys.path]  # "" is the working directory, of interactive sessions
    return {**ONE_THREAD, **os.environ, "PYTHONPATH": os.pathsep.join(places)}
