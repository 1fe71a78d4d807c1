"""Any history of a followed ref: what is here and new enough is held, and nothing else."""

from hypothesis import given, strategies as st

from underlay.policy.follow import FollowedVersion, plan_holds


@st.composite
def histories(draw: st.DrawFn) -> list[FollowedVersion]:
    """Versions of one ref, newest last, each here or not and held or not."""
    states = draw(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20))
    return [
        FollowedVersion(id=f"{number}", is_here=is_here, name=f"n{number}" if is_here else None, held=(f"n{number}",) * is_held)
        for number, (is_here, is_held) in enumerate(states)
    ]


@given(histories(), st.integers(0, 20))
def test_the_newest_that_are_here_are_held_and_no_others(history: list[FollowedVersion], keep: int) -> None:
    held = [one.version for one in plan_holds(history, keep=keep) if one.holds]

    assert [one for one in reversed(history) if one.is_here][: keep + 1] == held


@given(histories(), st.integers(0, 20))
def test_whatever_was_held_is_held_or_let_go_with_a_reason(history: list[FollowedVersion], keep: int) -> None:
    verdicts = plan_holds(history, keep=keep)

    assert {one.id for one in history if one.held} <= {one.version.id for one in verdicts}
    assert all(one.reason.code and one.reason.detail for one in verdicts)
    assert len(verdicts) == len({one.version.id for one in verdicts})


@given(histories(), st.integers(0, 20))
def test_keeping_more_lets_go_of_nothing_more(history: list[FollowedVersion], keep: int) -> None:
    def let_go(number: int) -> set[str | None]:
        return {one.version.id for one in plan_holds(history, keep=number) if not one.holds}

    assert let_go(keep + 1) <= let_go(keep)


@given(histories(), st.integers(0, 20))
def test_a_version_that_is_not_here_changes_nothing_for_the_others(history: list[FollowedVersion], keep: int) -> None:
    without = [one for one in history if one.is_here]

    def holds(versions: list[FollowedVersion]) -> list[tuple[str | None, bool]]:
        return [(one.version.id, one.holds) for one in plan_holds(versions, keep=keep) if one.version.is_here]

    assert holds(without) == holds(history)
