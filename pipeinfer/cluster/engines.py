"""Which engines of this installation compute on this machine: each is loaded and multiplies in a process of its own."""

import subprocess
from typing import Any

from pipeinfer.cluster.doctor import Diagnosis
from pipeinfer.cluster.process_end import how_it_ended
from pipeinfer.cluster.python_process import python_command, python_environment
from pipeinfer.plugins import BACKENDS, BrokenPlugin, load, names

LONGEST_S = 120.0
"""An engine that is not done by then hangs."""


def examine_engines() -> list[Diagnosis]:
    """A finding for each backend that is installed. They are tried at the same time."""
    return [finding_of(name, started) for name, started in [(name, start(name)) for name in names(BACKENDS)]]


def start(name: str) -> "subprocess.Popen[str] | None":
    """The process that tries the backend; None where it is not installed whole."""
    try:
        load(BACKENDS, name)
    except BrokenPlugin:
        return None
    command = python_command("pipeinfer.cluster.engine_trial", name)
    environment = python_environment()
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finding_of(name: str, trial: "subprocess.Popen[str] | None") -> Diagnosis:
    """What came of the trial, once it has ended."""
    what = f"engine {name}"
    if trial is None:
        return Diagnosis(what, "unknown", "not installed")
    try:
        tried, said = trial.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        trial.kill()
        tried, said = trial.communicate()
    lines = tried.splitlines() or ["loading"]
    if trial.returncode == 0:
        return Diagnosis(what, "ok", f"loads, and computes in {', '.join(lines[1:])}" if lines[1:] else "loads")
    if trial.returncode > 0:
        return Diagnosis(what, "advice", lines[-1], cure(name))
    words = said.strip().splitlines()[-1:]
    found = ": ".join([f"{lines[-1]}: {how_it_ended(trial.returncode)}", *words])
    return Diagnosis(what, "advice", found, cure(name))


def cure(name: str) -> str:
    """How to get the engine built for this machine, as the backend says it."""
    backend: Any = load(BACKENDS, name)
    return getattr(backend, "REINSTALL", f"install the package of backend {name} again, built on this machine")
