"""Conformance kits for plug-ins, and small random models to run them on. Needs the `test` extra.

Subclass `BackendConformance` or `TransportConformance` in a pytest module; `backends/README.md` is the guide.
"""

from importlib import import_module
from typing import Any

_HOMES = {"BackendConformance": "backends", "TransportConformance": "transports", "write_llama": "models"}


def __getattr__(name: str) -> Any:
    """Load a kit when it is first named: a transport's author needs none of what backends are tested with."""
    if name not in _HOMES:
        raise AttributeError(f"pipeinfer.testing has no {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(f"pipeinfer.testing.{_HOMES[name]}"), name)
