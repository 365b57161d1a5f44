"""Rotary position embedding: each pair of head dimensions is a complex number turned by position times frequency."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeinfer_numpy.config import Llama3Scaling, LlamaConfig


def inverse_frequencies(config: LlamaConfig) -> NDArray[np.float64]:
    """Radians per position of each pair, [head_size / 2]."""
    plain = config.rope_base ** -(np.arange(0, config.head_size, 2) / config.head_size)
    scaling = config.llama3_scaling
    return plain if scaling is None else stretch(plain, scaling)


def stretch(frequencies: NDArray[np.float64], scaling: Llama3Scaling) -> NDArray[np.float64]:
    """Llama 3.1: short wavelengths stay, long ones grow by `factor`, those between are blended."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotations(frequencies: NDArray[np.float64], positions: Sequence[int]) -> NDArray[np.complex64]:
    """One unit complex number per row and pair, [rows, head_size / 2]."""
    turns: NDArray[np.complex128] = np.exp(1j * np.outer(positions, frequencies))
    return turns.astype(np.complex64)
