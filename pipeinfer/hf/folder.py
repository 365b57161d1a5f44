"""From a model's name to its folder: a path, or one of the two models that come with the project."""

from pathlib import Path

from pipeinfer.assets import asset
from pipeinfer.backend import BadModel

BUILTIN = ("builtin:target", "builtin:draft")


def find_folder(model: str) -> Path:
    """The folder that `model` names. Raises BadModel."""
    if model.startswith("builtin:"):
        return builtin_folder(model)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise BadModel(f"expected a model folder or one of {', '.join(BUILTIN)}, came {model!r}, which is no folder:"
                       " give the path of a downloaded Hugging Face model")
    return folder


def builtin_folder(model: str) -> Path:
    if model not in BUILTIN:
        raise BadModel(f"expected one of {', '.join(BUILTIN)}, came {model!r}: choose one of them or give a folder")
    try:
        return asset(f"workloads/builtin/{model.removeprefix('builtin:')}")
    except FileNotFoundError as error:
        raise BadModel(str(error)) from None
