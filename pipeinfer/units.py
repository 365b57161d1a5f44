"""Quantities as people write them: `1Gbit`, `100M`, `0.2ms`, `50us`."""

import re

BANDWIDTH = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ/]*)\s*", re.IGNORECASE)


def bandwidth_bps(text: str) -> float:
    """Bit/s of `100M`, `1Gbit`, `1Gbit/s`, `25e9`. Raises ValueError."""
    number, unit = _split(text, "a bandwidth like 1Gbit or 100Mbit")
    prefix = re.sub(r"([bB][iI][tT]|b)?(/s|ps)?$", "", unit).lower()  # a capital B alone is a byte
    if prefix not in BANDWIDTH or number <= 0:
        raise ValueError(f'"{text}": expected a bandwidth like 1Gbit or 100Mbit (bit/s)')
    return number * BANDWIDTH[prefix]


def seconds(text: str) -> float:
    """Seconds of `0.2ms`, `50us`, `1s`. Raises ValueError."""
    number, unit = _split(text, "a time like 0.2ms or 50us")
    if unit.lower() not in TIME:
        raise ValueError(f'"{text}": expected a time with its unit, like 0.2ms or 50us')
    return number * TIME[unit.lower()]


def rate(bps: float) -> str:
    """Bit/s as people write them: `94.2 Mbit/s`, `6.1 Gbit/s`."""
    return f"{bps / 1e9:.1f} Gbit/s" if bps >= 1e9 else f"{bps / 1e6:.1f} Mbit/s"


def size(count: int) -> str:
    """Bytes as people write them: `3.2 GB`, `12.0 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _split(text: str, expected: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text}": expected {expected}')
    return float(match.group(1)), match.group(2)
