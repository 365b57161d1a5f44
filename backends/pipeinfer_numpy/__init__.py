"""The embedded backend: a Llama stage in NumPy. Start reading at `model.py`."""

from pipeinfer_numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
