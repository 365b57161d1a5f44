"""The PyTorch backend: a stage of any common decoder-only model. Start reading at `stage.py`."""

from pipeinfer_torch.backend import TorchBackend

__all__ = ["TorchBackend"]
