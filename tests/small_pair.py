"""A target and a draft that decode several times as fast as the built-in ones, for tests of how they are scheduled: as
sensitive to mistakes, as unsure of some tokens, and of one mind about as often."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pipeinfer.testing.models import write_llama

SURE = np.float32(6.0)
"""By so much logits are further apart than in a random model, to which nearly all tokens are equally likely."""

LATER = np.float32(0.1)
"""By so much the layers that the draft lacks change their input less: three of four tokens stay the same."""


class Pair(NamedTuple):
    """Folders of two models."""

    target: str
    draft: str


def write_pair(folder: Path) -> Pair:
    """A target of four layers, and the first of them as the draft."""
    target, draft = write_llama(folder / "target", layers=4), write_llama(folder / "draft", layers=1)
    tensors = load_file(target / "model.safetensors")
    tensors["lm_head.weight"] *= SURE
    later = {name for name in tensors if re.match(r"model\.layers\.[1-9]", name)}
    for name in later:
        if "o_proj" in name or "down_proj" in name:
            tensors[name] *= LATER
    save(tensors, target)
    save({name: tensor for name, tensor in tensors.items() if name not in later}, draft)
    return Pair(str(target), str(draft))


def save(tensors: dict[str, NDArray[np.float32]], model: Path) -> None:
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
