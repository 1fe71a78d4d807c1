"""Which versions of a followed ref are held: golden cases. What holds of any history is in tests/properties."""

from collections.abc import Sequence

import pytest

from underlay.policy.follow import FollowedVersion, plan_holds, plan_unfollow


def here(version: str, *held: str) -> FollowedVersion:
    return FollowedVersion(id=version, is_here=True, name=f"name-{version}", held=held)


def gone(version: str, *held: str) -> FollowedVersion:
    return FollowedVersion(id=version, held=held)


def planned(versions: Sequence[FollowedVersion], *, keep: int) -> list[tuple[str | None, str, str]]:
    verdicts = plan_holds(versions, keep=keep)
    return [(one.version.id, "hold" if one.holds else "let go", one.reason.code) for one in verdicts]


NEWEST, OLD, LET_GO, GONE = (
    ("hold", "newest"),
    ("hold", "kept-old"),
    ("let go", "superseded"),
    ("let go", "evicted"),
)


@pytest.mark.parametrize(
    ("versions", "keep", "expected"),
    [
        ([], 1, []),
        ([here("1")], 1, [("1", *NEWEST)]),
        ([here("1", "name-1"), here("2")], 1, [("2", *NEWEST), ("1", *OLD)]),
        ([here("1", "name-1"), here("2")], 0, [("2", *NEWEST), ("1", *LET_GO)]),
        ([here("1", "name-1"), here("2", "name-2"), here("3")], 1, [("3", *NEWEST), ("2", *OLD), ("1", *LET_GO)]),
        # A version that was never published, or has gone, keeps no older one out.
        ([here("1", "name-1"), gone("2"), here("3")], 1, [("3", *NEWEST), ("1", *OLD)]),
        ([here("1", "name-1"), gone("2", "name-2"), here("3")], 1, [("3", *NEWEST), ("2", *GONE), ("1", *OLD)]),
        # The newest could not be published: what is here is held.
        ([here("1", "name-1"), here("2", "name-2"), gone("3")], 1, [("2", *NEWEST), ("1", *OLD)]),
        # What is neither to be held nor is held has no verdict.
        ([here("1"), here("2"), here("3")], 1, [("3", *NEWEST), ("2", *OLD)]),
        ([gone("1"), gone("2")], 1, []),
    ],
)
def test_the_newest_that_is_here_is_held_and_some_older_ones(
    versions: list[FollowedVersion], keep: int, expected: list[tuple[str, str, str]]
) -> None:
    assert expected == planned(versions, keep=keep)


def test_what_is_planned_to_be_here_counts_as_the_newest() -> None:
    versions = [here("1", "name-1"), FollowedVersion(id=None, is_here=True)]

    assert [(None, *NEWEST), ("1", *LET_GO)] == planned(versions, keep=0)


def test_reasons_say_how_many_are_kept() -> None:
    [_, old, let_go] = plan_holds([here("1", "name-1"), here("2"), here("3")], keep=1)

    assert "older versions are kept: 1" == old.reason.detail
    assert "newer versions are here: 2; older ones are kept: 1" == let_go.reason.detail


def test_all_is_let_go_of_a_ref_that_is_followed_no_more() -> None:
    verdicts = plan_unfollow(["a", "b"])

    assert [("a", False, "unfollowed"), ("b", False, "unfollowed")] == [
        (one.version.name, one.holds, one.reason.code) for one in verdicts
    ]
