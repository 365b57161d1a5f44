"""Range checks for the options of strategies."""


def require(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} = {value}: expected {low} to {high}")
