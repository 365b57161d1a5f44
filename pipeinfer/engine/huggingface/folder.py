"""From a model's name to its folder: a path, or one of the models that come with the project."""

import hashlib
from pathlib import Path

from pipeinfer.assets import asset
from pipeinfer.engine.backend import BadModel
from pipeinfer.engine.huggingface.checkpoint import SINGLE
from pipeinfer.engine.model_cache import cache_folder, expanded, made_once

GROWN = "builtin:target-100m"
"""The built-in target grown to 107 million parameters: the same tokens for the compute of that size."""

GROWN_WIDTH, GROWN_LAYERS = 4, 9

BUILTIN = ("builtin:target", "builtin:draft", GROWN)


def find_folder(model: str) -> Path:
    """The folder that `model` names. Raises BadModel."""
    if model.startswith("builtin:"):
        return builtin_folder(model)
    folder = expanded(model)
    if not folder.is_dir():
        raise BadModel(f"expected a model folder or one of {', '.join(BUILTIN)}, came {model!r}, which is no folder:"
                       " give the path of a downloaded Hugging Face model")
    return folder


def builtin_folder(model: str) -> Path:
    if model not in BUILTIN:
        raise BadModel(f"expected one of {', '.join(BUILTIN)}, came {model!r}: choose one of them or give a folder")
    if model == GROWN:
        return grown_folder()
    try:
        return asset(f"workloads/builtin/{model.removeprefix('builtin:')}")
    except FileNotFoundError as error:
        raise BadModel(str(error)) from None


def grown_folder() -> Path:
    """The folder of the grown target, made in the cache now or before."""
    from pipeinfer.engine.huggingface.grow import FORMAT, grow

    source = builtin_folder("builtin:target")
    digest = hashlib.sha256(f"{FORMAT} {GROWN_WIDTH} {GROWN_LAYERS}".encode())
    digest.update((source / SINGLE).read_bytes())
    path = cache_folder("models") / f"{GROWN.removeprefix('builtin:')}-{digest.hexdigest()[:16]}"
    return made_once(path, lambda folder: grow(source, folder, width=GROWN_WIDTH, layers=GROWN_LAYERS))
