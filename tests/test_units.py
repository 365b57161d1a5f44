"""Quantities as people write them."""

import pytest

from pipeinfer.units import bandwidth_bps, rate, seconds, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1Gbit", 1e9),
        ("1Gbit/s", 1e9),
        ("1 Gbps", 1e9),
        ("100M", 1e8),
        ("100mbit", 1e8),
        ("25e9", 25e9),
        ("2.5G", 2.5e9),
        (".5k", 500.0),
        ("9600", 9600.0),
        ("9600bit/s", 9600.0),
        ("1e-3T", 1e9),
    ],
)
def test_a_bandwidth(text: str, expected: float) -> None:
    assert bandwidth_bps(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["", "fast", "1Gbyte", "1GB", "-1G", "0", "0Gbit", "1.2.3G", "G", "1 G bit", "nan", "inf"]
)
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(ValueError, match="expected a bandwidth like 1Gbit") as refused:
        bandwidth_bps(text)
    assert f'"{text}"' in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.2ms", 2e-4), ("50us", 5e-5), ("50µs", 5e-5), ("1s", 1.0), ("1 S", 1.0), ("300ns", 3e-7), ("0s", 0.0)],
)
def test_a_time(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "3", "ms", "1h", "-1ms", "1e", "1..2s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time") as refused:
        seconds(text)
    assert f'"{text}"' in str(refused.value)


def test_quantities_as_people_write_them() -> None:
    assert [rate(94.2e6), rate(1e9), rate(25e9)] == ["94.2 Mbit/s", "1.0 Gbit/s", "25.0 Gbit/s"]
    assert [size(2_097_152), size(500_000_000), size(33_200_000_000)] == ["2.1 MB", "0.5 GB", "33.2 GB"]
