"""Verdicts on the files of a base cache, decided from values alone: every reason, every boundary."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from underlay.model import Damage, Problem, Reason
from underlay.naming import CacheKind
from underlay.plan import IMAGE_KINDS, CachedFile, Inventory, Observed, Rules, Unknown, Usage, Use, Verdict
from underlay.policy.prune import merge_usage, nanoseconds, plan_evict, plan_prune, refusal
from underlay.values import replace as with_changes

ROOT, OTHER = Path("/cache"), Path("/other")
NOW = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
NOW_NS = nanoseconds(NOW)
SECOND = 1_000_000_000
GIB = 1 << 30
KINDS = sorted(IMAGE_KINDS | {"leftover"})
DEFAULT_AGES = {"original": 86400, "resized": 3600, "swap": 86400, "ephemeral": 86400, "leftover": 86400}
NOTHING = Usage(uses={}, unknowns=(), problems=())


def file(name: str = "a", *, age_ns: int, kind: str = "original", allocated: int = GIB) -> CachedFile:
    used = NOW_NS - age_ns
    return CachedFile(
        name=name, kind=kind, device=1, inode=hash(name), size=allocated, mtime_ns=used, ctime_ns=used, links=1,
        allocated=allocated, used_ns=used,
    )  # fmt: skip


def inventory(*files: CachedFile, rules: Rules | None = None, free: int = 100 * GIB) -> Inventory:
    return Inventory(
        cache="base", root=ROOT, kind=CacheKind.BASE, rules=rules or Rules(), files=files, versions={}, free=free
    )  # fmt: skip


def usage(*uses: Use, unknowns: Sequence[Unknown] = ()) -> Usage:
    return merge_usage([Observed(uses=uses, unknowns=unknowns)])


def judged(one: CachedFile, seen: Usage = NOTHING, rules: Rules | None = None) -> Verdict:
    (verdict,) = plan_prune(inventory(one, rules=rules), seen, now=NOW)
    return verdict


def codes(verdict: Verdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


def going(verdicts: Sequence[Verdict]) -> list[str]:
    return [verdict.file.name for verdict in verdicts if verdict.removes]


# ------------------------------------------------------------------------------------------------------------------------- ages


@pytest.mark.parametrize("kind", KINDS)
def test_an_unused_file_goes_at_exactly_its_age_and_not_a_nanosecond_before(kind: str) -> None:
    limit = DEFAULT_AGES[kind] * SECOND

    assert judged(file(age_ns=limit, kind=kind)).removes
    assert judged(file(age_ns=limit + 1, kind=kind)).removes
    young = judged(file(age_ns=limit - 1, kind=kind))
    assert not young.removes
    assert ["young"] == codes(young)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0.0, 0.5, 86400.25, 400 * 86400.0])
def test_the_age_of_each_kind_is_its_own_and_holds_to_the_nanosecond(kind: str, limit: float) -> None:
    others = {"original_age": 1e12, "resized_age": 1e12, "leftover_age": 1e12}
    ages = others | {{"resized": "resized_age", "leftover": "leftover_age"}.get(kind, "original_age"): limit}
    rules = msgspec.convert({"keep_recent": 0.0, **ages}, Rules)
    exact = int(limit * SECOND)

    assert judged(file(age_ns=exact, kind=kind), rules=rules).removes
    assert not judged(file(age_ns=exact - 1, kind=kind), rules=rules).removes


def test_a_young_file_says_how_long_it_still_stays_and_until_when() -> None:
    verdict = judged(file(age_ns=75_600 * SECOND))

    assert [Reason("young", "younger than 86400 s: 3 h left")] == list(verdict.reasons)
    assert NOW + timedelta(hours=3) == verdict.goes_at


def test_a_last_use_in_the_future_keeps_a_file_and_says_by_how_much() -> None:
    verdict = judged(file(age_ns=-2 * 3600 * SECOND))

    assert not verdict.removes
    assert [Reason("future", "its last use lies 2 h in the future")] == list(verdict.reasons)
    assert ["future"] == codes(judged(file(age_ns=-1)))


def test_a_time_that_no_calendar_has_is_no_error() -> None:
    largest, smallest = (judged(replace(file(age_ns=0), used_ns=used)) for used in (1 << 62, -(1 << 63)))

    assert (["future"], ["unused"]) == (codes(largest), codes(smallest))
    assert None is judged(replace(file(age_ns=0), used_ns=1 << 70)).goes_at


def test_nothing_that_was_used_recently_goes_whatever_its_age_allows() -> None:
    rules = Rules(original_age=0, keep_recent=900)

    assert ["recent"] == codes(judged(file(age_ns=900 * SECOND - 1), rules=rules))
    assert judged(file(age_ns=900 * SECOND), rules=rules).removes
    assert NOW == judged(file(age_ns=900 * SECOND), rules=rules).goes_at
    assert ["recent"] == codes(judged(file(age_ns=0), rules=rules))


def damaged(*files: CachedFile, rules: Rules | None = None) -> Inventory:
    """A cache all of whose files a scrub has found damaged."""
    damage = Damage(code="unreadable", detail="Input/output error", found_at=NOW)
    return with_changes(inventory(*files, rules=rules), damaged={one.name: damage for one in files})


def test_a_damaged_file_goes_however_young_it_is_but_never_from_who_needs_it() -> None:
    one = file(age_ns=0)
    [verdict] = plan_prune(damaged(one), NOTHING, now=NOW)
    assert (True, ["damaged"], None) == (verdict.removes, codes(verdict), verdict.stays)
    [verdict] = plan_prune(damaged(one), usage(Use(ROOT, "a", "backing-file", "/disk")), now=NOW)
    assert (False, ["backing-file", "damaged"], None) == (verdict.removes, codes(verdict), verdict.goes_at)
    unknown = Unknown("inventory-unavailable", "it does not answer")
    [verdict] = plan_prune(damaged(one), usage(unknowns=[unknown]), now=NOW)
    assert (False, ["inventory-unavailable", "damaged"]) == (verdict.removes, codes(verdict))


def test_a_damaged_file_stays_where_nothing_is_removed_and_goes_when_it_is_asked_to() -> None:
    one = file(age_ns=0)
    [verdict] = plan_prune(damaged(one, rules=Rules(remove_unused=False)), NOTHING, now=NOW)
    assert (False, ["removal-off", "damaged"]) == (verdict.removes, codes(verdict))
    assert (True, ["asked"]) == (plan_evict(verdict).removes, codes(plan_evict(verdict)))
    [needed] = plan_prune(damaged(one), usage(Use(ROOT, "a", "pin", "me")), now=NOW)
    assert (False, ["pin"]) == (plan_evict(needed).removes, codes(plan_evict(needed)))


def test_a_leftover_is_abandoned_and_an_image_unused() -> None:
    assert ["abandoned"] == codes(judged(file(age_ns=2 * 86400 * SECOND, kind="leftover")))
    assert ["unused"] == codes(judged(file(age_ns=2 * 86400 * SECOND)))


# ------------------------------------------------------------------------------------------------------------------------- uses


HOWS = {
    "instance-image": "image of",
    "instance-swap": "swap of",
    "instance-ephemeral": "ephemeral of",
    "backing-file": "backing-file of",
    "backing-name": "named like the backing file of",
    "recorded-base": "recorded as the base of",
    "lease": "leased by",
    "pin": "pinned by",
    "linked": "linked:",
    "open": "open:",
    "open-unknown": "perhaps open:",
    "host": "used by host",
}


@pytest.mark.parametrize("how", HOWS)
def test_every_way_to_be_used_keeps_an_old_file_and_says_who(how: str) -> None:
    verdict = judged(file(age_ns=10**18), usage(Use(ROOT, "a", how, "somebody")))

    assert not verdict.removes
    assert (Reason(how, f"{HOWS[how]} somebody"),) == verdict.reasons
    assert None is verdict.goes_at
    assert (how != "open-unknown") == verdict.refresh  # what cannot be told keeps, and starts no grace


def test_an_unsure_use_keeps_a_file_as_a_sure_one_does() -> None:
    assert not judged(file(age_ns=10**18), usage(Use(ROOT, "a", "backing-name", "x", sure=False))).removes


def test_a_use_keeps_its_own_file_in_its_own_cache_only() -> None:
    seen = usage(Use(ROOT, "b", "pin", "x"), Use(OTHER, "a", "pin", "x"))

    assert judged(file(age_ns=10**18), seen).removes


def test_a_reason_names_three_users_and_counts_the_others() -> None:
    seen = usage(*(Use(ROOT, "a", "backing-file", f"disk {number}") for number in range(5)), Use(ROOT, "a", "pin", "me"))

    assert [
        Reason("backing-file", "backing-file of disk 0, disk 1, disk 2 and 2 more"),
        Reason("pin", "pinned by me"),
    ] == list(judged(file(age_ns=10**18), seen).reasons)


def test_a_used_young_file_tells_both_reasons() -> None:
    assert ["pin", "young"] == codes(judged(file(age_ns=SECOND), usage(Use(ROOT, "a", "pin", "x"))))


def test_a_leftover_is_never_refreshed() -> None:
    verdict = judged(file(age_ns=10**18, kind="leftover"), usage(Use(ROOT, "a", "open", "x")))

    assert (False, False) == (verdict.removes, verdict.refresh)


# ---------------------------------------------------------------------------------------------------------------------- unknown


@pytest.mark.parametrize("kept", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unknown_keeps_its_kinds_and_no_others(kept: str, kind: str) -> None:
    seen = usage(unknowns=[Unknown("disk-unreadable", "a disk", keeps=frozenset({kept}))])

    verdict = judged(file(age_ns=10**18, kind=kind), seen)

    assert (kept != kind) == verdict.removes
    assert not verdict.refresh
    if kept == kind:
        assert (Reason("disk-unreadable", "a disk"),) == verdict.reasons
        assert None is verdict.goes_at


def test_what_is_unknown_keeps_images_and_lets_leftovers_go_unless_it_says_otherwise() -> None:
    seen = usage(unknowns=[Unknown("inventory-unavailable", "no answer")])

    assert KINDS == sorted({"leftover"} | IMAGE_KINDS)
    assert ["leftover"] == [kind for kind in KINDS if judged(file(age_ns=10**18, kind=kind), seen).removes]


def test_what_is_unknown_of_one_cache_says_nothing_of_another() -> None:
    assert judged(file(age_ns=10**18), usage(unknowns=[Unknown("x", "y", root=OTHER)])).removes
    assert not judged(file(age_ns=10**18), usage(unknowns=[Unknown("x", "y", root=ROOT)])).removes


def test_many_unknowns_of_one_code_are_one_reason() -> None:
    seen = usage(unknowns=[Unknown("disk-unreadable", f"disk {number}") for number in range(4)])

    assert [Reason("disk-unreadable", "disk 0, disk 1, disk 2 and 1 more")] == list(judged(file(age_ns=10**18), seen).reasons)


# ------------------------------------------------------------------------------------------------------------------ removal off


def test_with_removal_off_nothing_goes_and_uses_are_refreshed_all_the_same() -> None:
    rules = Rules(remove_unused=False, max_size=0, free_low=10**15)
    files = [file(kind, age_ns=10**18, kind=kind) for kind in KINDS]

    verdicts = plan_prune(inventory(*files, rules=rules), usage(Use(ROOT, "original", "pin", "x")), now=NOW)

    assert [] == going(verdicts)
    assert ["original"] == [verdict.file.name for verdict in verdicts if verdict.refresh]
    assert all("removal-off" in codes(verdict) for verdict in verdicts)
    assert [None] * len(files) == [verdict.goes_at for verdict in verdicts]


# ------------------------------------------------------------------------------------------------------------------------- room


def cached(*ages: int, **changes: int) -> list[CachedFile]:
    """Files of 1 GiB, of ages in hours."""
    return [file(f"{age:02}h", age_ns=age * 3600 * SECOND, **changes) for age in ages]  # type: ignore[arg-type]


def test_over_the_cap_the_least_recently_used_go_early_until_it_fits() -> None:
    verdicts = plan_prune(inventory(*cached(3, 9, 1, 5), rules=Rules(max_size=2 * GIB)), NOTHING, now=NOW)

    assert ["09h", "05h"] == going(verdicts)
    assert ["over-cap"] == codes(verdicts[1])
    assert ["young"] == codes(verdicts[2])


def test_at_exactly_the_cap_nothing_goes_and_one_byte_over_it_one_file_does() -> None:
    exactly = Rules(max_size=4 * GIB)

    assert [] == going(plan_prune(inventory(*cached(3, 9, 1, 5), rules=exactly), NOTHING, now=NOW))
    over = with_changes(exactly, max_size=4 * GIB - 1)
    assert ["09h"] == going(plan_prune(inventory(*cached(3, 9, 1, 5), rules=over), NOTHING, now=NOW))


def test_what_goes_by_its_age_counts_towards_the_cap() -> None:
    verdicts = plan_prune(inventory(*cached(99, 9, 1), rules=Rules(max_size=2 * GIB)), NOTHING, now=NOW)

    assert ["99h"] == going(verdicts)
    assert ["unused"] == codes(verdicts[0])


def test_a_cap_takes_nothing_that_is_used_recent_unknown_or_from_the_future() -> None:
    files = [*cached(0, -1, 5, 6), file("swap", age_ns=7 * 3600 * SECOND, kind="swap")]
    seen = usage(
        Use(ROOT, "05h", "pin", "x"), Use(ROOT, "06h", "open-unknown", "x"), unknowns=[Unknown("x", "y", frozenset({"swap"}))]
    )

    assert [] == going(plan_prune(inventory(*files, rules=Rules(max_size=0)), seen, now=NOW))


def test_used_within_keep_recent_stays_and_at_its_end_goes_for_a_cap() -> None:
    files = [file("in", age_ns=900 * SECOND - 1), file("out", age_ns=900 * SECOND)]

    assert ["out"] == going(plan_prune(inventory(*files, rules=Rules(max_size=0)), NOTHING, now=NOW))


def test_below_the_low_watermark_files_go_until_the_high_one_is_reached() -> None:
    rules = Rules(free_low=10 * GIB, free_high=12 * GIB)

    verdicts = plan_prune(inventory(*cached(3, 9, 1, 5, 7), rules=rules, free=10 * GIB - 1), NOTHING, now=NOW)

    assert ["09h", "05h", "07h"] == going(verdicts)
    assert ["low-space"] == codes(verdicts[1])


def test_at_the_low_watermark_nothing_goes_early() -> None:
    rules = Rules(free_low=10 * GIB, free_high=12 * GIB)

    assert [] == going(plan_prune(inventory(*cached(3, 9), rules=rules, free=10 * GIB), NOTHING, now=NOW))


def test_what_goes_by_its_age_counts_towards_the_watermark() -> None:
    rules = Rules(free_low=10 * GIB, free_high=12 * GIB)

    assert ["99h"] == going(plan_prune(inventory(*cached(99, 9), rules=rules, free=9 * GIB), NOTHING, now=NOW))


def test_a_low_watermark_alone_is_also_where_it_stops() -> None:
    rules = Rules(free_low=10 * GIB)

    assert ["09h"] == going(plan_prune(inventory(*cached(3, 9, 5), rules=rules, free=9 * GIB), NOTHING, now=NOW))


def test_the_order_of_verdicts_is_that_of_the_files_whatever_goes_first() -> None:
    files = cached(3, 9, 1, 5)

    verdicts = plan_prune(inventory(*files, rules=Rules(max_size=GIB)), NOTHING, now=NOW)

    assert files == [verdict.file for verdict in verdicts]


# ------------------------------------------------------------------------------------------------------------------------ evict


@pytest.mark.parametrize("age_ns", [0, 60 * SECOND, -(10**12), 10**18])
def test_what_is_asked_for_goes_whatever_its_age(age_ns: int) -> None:
    assert plan_evict(judged(file(age_ns=age_ns))).removes


def test_what_is_asked_for_goes_though_removal_is_off_and_says_that_it_was_asked() -> None:
    evicted = plan_evict(judged(file(age_ns=0), rules=Rules(remove_unused=False)))

    assert (True, False, ["asked"]) == (evicted.removes, evicted.refresh, codes(evicted))


@pytest.mark.parametrize("how", HOWS)
def test_what_is_used_stays_though_it_was_asked_for(how: str) -> None:
    kept = plan_evict(judged(file(age_ns=0), usage(Use(ROOT, "a", how, "x"))))

    assert (False, [how]) == (kept.removes, codes(kept))


def test_what_is_unknown_stays_though_it_was_asked_for() -> None:
    kept = plan_evict(judged(file(age_ns=0), usage(unknowns=[Unknown("disk-unreadable", "x")])))

    assert (False, ["disk-unreadable"]) == (kept.removes, codes(kept))


def test_what_goes_anyway_keeps_its_own_reason() -> None:
    verdict = judged(file(age_ns=10**18))

    assert verdict == plan_evict(verdict)


# ------------------------------------------------------------------------------------------------------- usage and second looks


def test_what_probes_find_is_put_together_by_cache_and_name_and_leaves_the_first_as_it_was() -> None:
    first = usage(Use(ROOT, "a", "pin", "x"))
    problem = Problem("p", ROOT, "d")

    opened = Observed(uses=[Use(ROOT, "a", "open", "y"), Use(OTHER, "a", "open", "z")], unknowns=[Unknown("u", "v")])
    both = merge_usage([opened, Observed(problems=[problem])], onto=first)

    assert ["pin", "open"] == [use.how for use in both.uses[ROOT]["a"]]
    assert ["z"] == [use.who for use in both.uses[OTHER]["a"]]
    assert (["u"], [problem]) == ([unknown.code for unknown in both.unknowns], list(both.problems))
    assert ["pin"] == [use.how for use in first.uses[ROOT]["a"]]


def test_a_second_look_refuses_by_a_use_else_by_what_is_unknown_of_the_kind() -> None:
    one = file(age_ns=10**18, kind="swap")
    use, unknown = Use(ROOT, "a", "pin", "x"), Unknown("u", "v")

    assert Reason("pin", "pinned by x") == refusal(one, [use], [unknown])
    assert Reason("u", "v") == refusal(one, [], [unknown])
    assert None is refusal(one, [], [Unknown("u", "v", frozenset({"original"}))])
    assert None is refusal(one, [], [])


@pytest.mark.parametrize(
    "moment", [NOW, datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
)
def test_nanoseconds_are_exact(moment: datetime) -> None:
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)

    assert (since // timedelta(microseconds=1)) * 1000 == nanoseconds(moment)
