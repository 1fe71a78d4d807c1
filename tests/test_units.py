"""Sizes and durations as people write them."""

import pytest

from underlay.errors import InvalidSize
from underlay.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("20GiB", 20 << 30),
        ("1.5 MiB", 3 << 19),
        ("10GB", 10**10),
        ("1kB", 1000),
        ("3MB", 3_000_000),
        ("2TB", 2 * 10**12),
        ("1KB", 1000),
        ("2 TiB", 2 << 40),
        (" 7PiB ", 7 << 50),
        ("9007199254740993B", 2**53 + 1),
        ("8191PiB", 8191 << 50),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert size == parse_size(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("20", "the size '20' has no unit"),
        ("", "'' is no size"),
        ("GiB", "'GiB' is no size"),
        ("-1GiB", "'-1GiB' is no size"),
        ("1e3MiB", "is no size"),
        ("1,5GiB", "is no size"),
        ("20 Gib", "'Gib' is no unit of a size"),
        ("20gib", "'gib' is no unit of a size"),
        ("20G", "'G' is no unit of a size"),
        ("20 GiB GiB", "is no size"),
        ("٢GiB", "is no size"),
        ("inf GiB", "is no size"),
        ("8192PiB", "is larger than any file"),
        ("9" * 30 + "B", "is no size"),
    ],
)
def test_what_is_no_size_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidSize) as error:
        parse_size(text)

    assert words in str(error.value)


def test_a_bare_number_is_refused_with_the_hint_to_write_a_unit() -> None:
    with pytest.raises(InvalidSize) as error:
        parse_size("20480")

    assert "write a unit as well, such as 20GiB" == error.value.hint


def test_an_unknown_unit_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSize) as error:
        parse_size("20G")

    assert error.value.hint is not None
    assert "GiB" in error.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("90 sec", 90), ("5min", 300), ("24h", 86400), ("7d", 604800), ("2w", 1209600), ("1.5h", 5400)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert seconds == parse_duration(text)


@pytest.mark.parametrize("text", ["7", "", "d", "-1d", "7 days", "1m", "1M", "7d 3h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidSize, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (99 << 10, "99.0 KiB"),
        (102_349, "100 KiB"),
        (1023 << 10, "1.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (10 << 40, "10.0 TiB"),
        (2000 << 50, "2000 PiB"),
    ],
)
def test_a_size_is_shown_short(size: int, text: str) -> None:
    assert text == format_size(size)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.9, "45 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (2 * 86400, "2 d"),
        (10**7, "115 d"),
    ],
)
def test_a_duration_is_shown_short(seconds: float, text: str) -> None:
    assert text == format_duration(seconds)
