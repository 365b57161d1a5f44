"""Options of strategies: which numbers are allowed, and which are worth trying."""

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Tokens per run, as they are swept."""


def require(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} = {value}: expected {low} to {high}")
