"""Real ranks, links and clocks, with calibrated waits instead of compute and an oracle's tokens instead of a model's.

For measuring schedulers and transports by themselves, at any speed and acceptance, on any machine.
"""

from pipeinfer_emulated.backend import EmulatedBackend

__all__ = ["EmulatedBackend"]
