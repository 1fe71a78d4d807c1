"""The page on parity with Ironic: every behaviour of its cache has a row, and every row names tests that are there.

Those that need the real Ironic beside us are in tests/components/ironic.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/ironic-parity.md"
NUMBERS = {"B": 30, "C": 10, "D": 6, "F": 15}
"""How many behaviours of a fetch, of the clean-up and of the caches together there are, and how many weak points."""


def rows(letter: str) -> dict[int, list[str]]:
    """The cells of each row of a table, by its number."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(rf"^\| {letter}(\d+) \| (.*) \|$", text, re.MULTILINE)
    assert {1} == set(Counter(number for number, _ in found).values())
    return {int(number): cells.split(" | ") for number, cells in found}


def written() -> dict[str, list[Path]]:
    """Where a test of each name is."""
    places: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            places.setdefault(name, []).append(path)
    return places


@pytest.mark.parametrize("letter", NUMBERS)
def test_the_page_has_a_row_for_each_behaviour(letter: str) -> None:
    assert list(range(1, NUMBERS[letter] + 1)) == list(rows(letter))


@pytest.mark.parametrize("letter", NUMBERS)
def test_each_row_says_what_both_do_and_names_a_test(letter: str) -> None:
    for number, cells in rows(letter).items():
        *told, tests = cells
        assert (1 if letter == "F" else 2) == len(told), f"{letter}{number}"
        assert all(cell.endswith(".") for cell in told), f"{letter}{number}"
        assert re.fullmatch(r"`test_\w+`(, `test_\w+`)*", tests), f"{letter}{number}"


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert set() == named - written().keys()
    assert len(named) > 100


def test_a_name_on_the_page_means_one_test() -> None:
    """Else a row would be held by a test of something else."""
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert {} == {name: places for name, places in written().items() if name in named and len(places) > 1}


def test_the_page_is_found_where_the_others_are() -> None:
    assert "reference/ironic-parity" in (ROOT / "docs/index.md").read_text(encoding="utf-8").split()
    assert "docs/reference/ironic-parity.md" in (ROOT / "README.md").read_text(encoding="utf-8")
