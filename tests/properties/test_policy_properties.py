"""Plans of any cache: what is used or unknown stays, time only makes more go, and a cap is kept whenever it can be."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, strategies as st

from underlay.naming import CacheKind
from underlay.plan import IMAGE_KINDS, CachedFile, Inventory, Observed, Rules, Unknown, Usage, Use, Verdict
from underlay.policy.prune import merge_usage, nanoseconds, plan_evict, plan_prune
from underlay.values import replace

ROOT, OTHER = Path("/cache"), Path("/other")
NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
KINDS = sorted(IMAGE_KINDS | {"leftover"})
HOWS = [
    "instance-image",
    "backing-file",
    "backing-name",
    "recorded-base",
    "lease",
    "pin",
    "linked",
    "open",
    "open-unknown",
    "host",
]
LIMITS = [0, 1, 900, 3600, 86400]
SECOND = 1_000_000_000

ages = st.integers(-(10**15), 10**15) | st.builds(
    lambda limit, more: limit * SECOND + more, st.sampled_from(LIMITS), st.integers(-1, 1)
)
rules = st.builds(
    Rules,
    remove_unused=st.booleans(),
    original_age=st.sampled_from(LIMITS),
    resized_age=st.sampled_from(LIMITS),
    leftover_age=st.sampled_from(LIMITS),
    keep_recent=st.sampled_from(LIMITS),
    max_size=st.none() | st.integers(0, 500),
    free_low=st.none() | st.integers(0, 500),
    free_high=st.none() | st.integers(0, 500),
)


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    count = draw(st.integers(0, 8))
    files = [
        CachedFile(
            name=f"file-{number}", kind=draw(st.sampled_from(KINDS)), device=1, inode=number, size=0, mtime_ns=0, ctime_ns=0,
            links=1, allocated=draw(st.integers(0, 100)), used_ns=nanoseconds(NOW) - draw(ages),
        )
        for number in range(count)
    ]  # fmt: skip
    free = draw(st.integers(0, 500))
    return Inventory(cache="base", root=ROOT, kind=CacheKind.BASE, rules=draw(rules), files=files, versions={}, free=free)


uses = st.builds(
    Use,
    st.sampled_from([ROOT, ROOT, OTHER]),
    st.integers(0, 7).map(lambda number: f"file-{number}"),
    st.sampled_from(HOWS),
    st.just("somebody"),
    st.booleans(),
)
unknowns = st.builds(
    Unknown, st.just("unknown"), st.just("x"), st.frozensets(st.sampled_from(KINDS)), st.sampled_from([None, ROOT, OTHER])
)
usages = st.builds(
    lambda found, doubts: merge_usage([Observed(uses=found, unknowns=doubts)]),
    st.lists(uses, max_size=6),
    st.lists(unknowns, max_size=2),
)


def needed(file: CachedFile, usage: Usage) -> bool:
    is_doubtful = any(file.kind in one.keeps and one.root in (None, ROOT) for one in usage.unknowns)
    return bool(usage.uses.get(ROOT, {}).get(file.name)) or is_doubtful


def gone(verdicts: Sequence[Verdict]) -> set[str]:
    return {verdict.file.name for verdict in verdicts if verdict.removes}


@given(inventories(), usages)
def test_what_is_used_or_of_an_unknown_kind_never_goes_by_any_plan(inventory: Inventory, usage: Usage) -> None:
    for verdict in plan_prune(inventory, usage, now=NOW):
        if needed(verdict.file, usage):
            assert not verdict.removes
            assert not plan_evict(verdict).removes
            assert verdict.goes_at is None
        elif verdict.file.used_ns > nanoseconds(NOW):
            assert not verdict.removes
        assert verdict.reasons
        assert not (verdict.removes and verdict.refresh)


@given(inventories(), usages)
def test_every_file_is_judged_once_and_in_its_place(inventory: Inventory, usage: Usage) -> None:
    assert inventory.files == [verdict.file for verdict in plan_prune(inventory, usage, now=NOW)]


@given(inventories(), usages)
def test_what_keep_recent_covers_never_goes(inventory: Inventory, usage: Usage) -> None:
    for verdict in plan_prune(inventory, usage, now=NOW):
        if nanoseconds(NOW) - verdict.file.used_ns < inventory.rules.keep_recent * SECOND:
            assert not verdict.removes


@given(inventories(), usages, st.integers(0, 10**7))
def test_by_age_alone_what_goes_now_goes_later_as_well(inventory: Inventory, usage: Usage, seconds: int) -> None:
    by_age = replace(inventory, rules=replace(inventory.rules, max_size=None, free_low=None))

    now, later = (gone(plan_prune(by_age, usage, now=NOW + timedelta(seconds=ahead))) for ahead in (0, seconds))

    assert now <= later


@given(inventories(), usages)
def test_a_file_goes_at_the_moment_that_it_was_told_to(inventory: Inventory, usage: Usage) -> None:
    by_age = replace(inventory, rules=replace(inventory.rules, max_size=None, free_low=None))
    for index, verdict in enumerate(plan_prune(by_age, usage, now=NOW)):
        if verdict.goes_at is not None:
            second = timedelta(seconds=1)
            before, after = (plan_prune(by_age, usage, now=verdict.goes_at + step)[index] for step in (-second, second))
            assert (False, True) == (before.removes, after.removes)


@given(inventories(), usages)
def test_nothing_that_is_used_less_makes_anything_stay(inventory: Inventory, usage: Usage) -> None:
    by_age = replace(inventory, rules=replace(inventory.rules, max_size=None, free_low=None))
    nobody = merge_usage([])

    assert gone(plan_prune(by_age, usage, now=NOW)) <= gone(plan_prune(by_age, nobody, now=NOW))


def may_go_early(verdict: Verdict, usage: Usage, rules: Rules) -> bool:
    age = nanoseconds(NOW) - verdict.file.used_ns
    return rules.remove_unused and not needed(verdict.file, usage) and age >= rules.keep_recent * SECOND and age >= 0


@given(inventories(), usages)
def test_the_cap_and_the_watermark_are_kept_or_nothing_more_may_go(inventory: Inventory, usage: Usage) -> None:
    rules = inventory.rules
    verdicts = plan_prune(inventory, usage, now=NOW)

    left = sum(verdict.file.allocated for verdict in verdicts if not verdict.removes)
    free = inventory.free + sum(verdict.file.allocated for verdict in verdicts if verdict.removes)
    is_low = rules.free_low is not None and free < rules.free_low
    if (rules.max_size is not None and left > rules.max_size) or is_low:
        assert [] == [one.file.name for one in verdicts if not one.removes and may_go_early(one, usage, rules)]


@given(inventories(), usages)
def test_room_is_made_by_the_least_recently_used_and_by_no_more_than_it_takes(inventory: Inventory, usage: Usage) -> None:
    rules = inventory.rules
    verdicts = plan_prune(inventory, usage, now=NOW)
    early = [one for one in verdicts if one.removes and {"over-cap", "low-space"} & {reason.code for reason in one.reasons}]
    stay = [one for one in verdicts if not one.removes and may_go_early(one, usage, rules)]

    assert all(one.file.used_ns <= other.file.used_ns for one in early for other in stay)
    if early:
        newest = max(early, key=lambda one: one.file.used_ns).file.used_ns
        last = [one for one in early if one.file.used_ns == newest]
        gained = sum(one.file.allocated for one in last)
        left = sum(one.file.allocated for one in verdicts if not one.removes) + gained
        free = inventory.free + sum(one.file.allocated for one in verdicts if one.removes) - gained
        goal = max(rules.free_low or 0, rules.free_high or 0)
        assert (rules.max_size is not None and left > rules.max_size) or (rules.free_low is not None and free < goal)
