"""PipeInfer: a benchmarking and reproducibility suite for pipelined speculative LLM inference (SC'24)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeinfer import errors, results
    from pipeinfer.modelling.side_by_side import SideBySide, simulate
    from pipeinfer.pipeline import GeneratedText, Pipeline, TextPieces

__version__ = "0.1.0"

__all__ = ["GeneratedText", "Pipeline", "SideBySide", "TextPieces", "__version__", "errors", "results", "simulate"]

_HOMES = {
    "GeneratedText": "pipeinfer.pipeline",
    "Pipeline": "pipeinfer.pipeline",
    "TextPieces": "pipeinfer.pipeline",
    "SideBySide": "pipeinfer.modelling.side_by_side",
    "simulate": "pipeinfer.modelling.side_by_side",
}
"""Where each public name is. It is imported when it is first asked for: every rank imports this package."""

_MODULES = ("errors", "results")
"""The same for public modules."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"pipeinfer.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
