"""Which files of a cache go: what nobody needs, once it is old enough; and why each of the others stays.

All that keeps a file is among its verdict's reasons, not only the first that was found, so that who makes one of them go away
knows what is left. What cannot be told keeps a file as a use does, but does not refresh it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from msgspec.structs import replace

from underlay.model import Reason
from underlay.plan import HELD_KINDS, CachedFile, Inventory, Observed, Rules, Unknown, Usage, Use, Verdict
from underlay.units import format_duration, format_size

NANOSECONDS = 1_000_000_000
_SHOWN = 3  # users of a file that a reason names

# How a use is told, before who it is.
_PHRASES: Mapping[str, str] = {
    "instance-image": "image of",
    "instance-swap": "swap of",
    "instance-ephemeral": "ephemeral of",
    "backing-file": "backing-file of",
    "backing-name": "named like the backing file of",
    "recorded-base": "recorded as the base of",
    "lease": "leased by",
    "pin": "pinned by",
    "linked": "linked:",
    "copied": "delivered as a copy to",
    "open": "open:",
    "open-unknown": "perhaps open:",
    "host": "used by host",
}

_NOBODY: Sequence[Use] = ()


def merge_usage(observed: Iterable[Observed], *, onto: Usage | None = None) -> Usage:
    """What all probes found, by cache directory and file name.

    Args:
        onto: what others had found before.
    """
    before = onto or Usage(uses={}, unknowns=(), problems=())
    uses = {root: {name: list(those) for name, those in by_name.items()} for root, by_name in before.uses.items()}
    unknowns, problems = list(before.unknowns), list(before.problems)
    for found in observed:
        for use in found.uses:
            uses.setdefault(use.root, {}).setdefault(use.name, []).append(use)
        unknowns += found.unknowns
        problems += found.problems
    return Usage(uses=uses, unknowns=unknowns, problems=problems)


def plan_prune(inventory: Inventory, usage: Usage, *, now: datetime) -> list[Verdict]:
    """The verdict on each file of a cache, in the inventory's order.

    Args:
        now: by which ages are told, aware.
    """
    uses = usage.uses.get(inventory.root, {})
    unknown = _unknown_by_kind(usage.unknowns, inventory.root)
    now_ns = nanoseconds(now)
    verdicts = [
        _judge(file, inventory, uses.get(file.name, _NOBODY), unknown.get(file.kind, ()), now_ns) for file in inventory.files
    ]
    return _make_room(verdicts, inventory, now_ns)


def plan_evict(verdict: Verdict) -> Verdict:
    """The verdict on one file when its age does not matter: it goes unless somebody needs it."""
    kept = tuple(reason for reason in verdict.reasons if reason.code not in _NO_NEED)
    if verdict.removes or kept:
        return replace(verdict, reasons=kept or verdict.reasons)
    return replace(verdict, removes=True, refresh=False, reasons=(Reason("asked", "nobody needs it, and it was asked for"),))


def refusal(file: CachedFile, uses: Sequence[Use], unknowns: Sequence[Unknown]) -> Reason | None:
    """Why a file that was to go is kept after all, by what was found just now; None when nothing speaks against it."""
    reasons = [*_use_reasons(uses), *_unknown_reasons(unknown for unknown in unknowns if file.kind in unknown.keeps)]
    return reasons[0] if reasons else None


def nanoseconds(moment: datetime) -> int:
    """Nanoseconds since the epoch."""
    whole = int(moment.timestamp() // 1)
    return whole * NANOSECONDS + moment.microsecond * 1000


_AGE_CODES = frozenset({"young", "recent", "future", "removal-off", "no-ttl"})
_NO_NEED = _AGE_CODES | {"damaged"}  # reasons of files that nobody needs


def _age_reason(file: CachedFile, rules: Rules, age_ns: int) -> Reason | None:
    """Why a file is too young to go, or None. Compared as it is: a long time in seconds has no nanoseconds left."""
    age, limit = age_ns / NANOSECONDS, rules.age_of(file.kind)
    if age_ns < 0:
        return Reason("future", f"its last use lies {format_duration(-age)} in the future")
    if limit == math.inf:
        return Reason("no-ttl", "masters do not age here: ttl is not set")
    # A master that is exactly as old as its ttl stays, as in Ironic; a base goes at its minimum age, as in Nova.
    if age_ns < limit * NANOSECONDS or (file.kind == "master" and age_ns == limit * NANOSECONDS):
        return Reason("young", f"younger than {limit:g} s: {format_duration(limit - age)} left")
    return _recent(rules) if age_ns < rules.keep_recent * NANOSECONDS else None


def _judge(file: CachedFile, inventory: Inventory, uses: Sequence[Use], unknown: Sequence[Reason], now_ns: int) -> Verdict:
    rules = inventory.rules
    age_ns = now_ns - file.used_ns
    age = age_ns / NANOSECONDS
    reasons = [*_use_reasons(uses), *unknown] if uses or unknown else []
    needed = bool(reasons)
    limit = rules.age_of(file.kind)
    if not rules.remove_unused:
        reasons.append(Reason("removal-off", "remove_unused_base_images is false"))
    damage = inventory.damaged.get(file.name)
    if damage is None and (too_young := _age_reason(file, rules, age_ns)):
        reasons.append(too_young)
    removes = not reasons
    if damage is not None:  # nobody is served it, so it has nothing to wait for
        reasons.append(Reason("damaged", f"it is damaged: {damage.detail}"))
    elif removes:
        code, phrase = ("abandoned", "nobody works on it") if file.kind == "leftover" else ("unused", "nobody needs it")
        reasons.append(Reason(code, f"{phrase}: {format_duration(age)} since its last use, over {limit:g} s"))
    return Verdict(
        cache=inventory.cache,
        root=inventory.root,
        file=file,
        removes=removes,
        refresh=bool(uses) and file.kind != "leftover" and any(use.how != "open-unknown" for use in uses),
        reasons=tuple(reasons),
        stays=None if needed or damage or not rules.remove_unused or limit == math.inf else max(limit, rules.keep_recent),
    )


def _recent(rules: Rules) -> Reason:
    return Reason("recent", f"used within the last {format_duration(rules.keep_recent)} (keep_recent)")


def _use_reasons(uses: Sequence[Use]) -> list[Reason]:
    """One reason for each way in which the file is used, naming the first users and counting the others."""
    if not uses:
        return []
    users: dict[str, list[str]] = {}
    for use in uses:
        users.setdefault(use.how, []).append(use.who)
    return [Reason(how, f"{_PHRASES.get(how, how)} {_listed(who)}") for how, who in users.items()]


def _listed(who: Sequence[str]) -> str:
    more = len(who) - _SHOWN
    return ", ".join(who[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _unknown_by_kind(unknowns: Sequence[Unknown], root: Path) -> dict[str, list[Reason]]:
    here = [unknown for unknown in unknowns if unknown.root in (None, root)]
    return {kind: _unknown_reasons(unknown for unknown in here if kind in unknown.keeps) for kind in HELD_KINDS | {"leftover"}}


def _unknown_reasons(unknowns: Iterable[Unknown]) -> list[Reason]:
    details: dict[str, list[str]] = {}
    for unknown in unknowns:
        details.setdefault(unknown.code, []).append(unknown.detail)
    return [Reason(code, _listed(those)) for code, those in details.items()]


def _make_room(verdicts: list[Verdict], inventory: Inventory, now_ns: int) -> list[Verdict]:
    """The verdicts once the size cap and the watermarks are kept: unused files go early, least recently used first."""
    rules = inventory.rules
    going = sum(verdict.file.allocated for verdict in verdicts if verdict.removes)
    total = sum(verdict.file.allocated for verdict in verdicts) - going
    free = inventory.free + going
    over = 0 if rules.max_size is None else total - rules.max_size
    short = 0 if rules.free_low is None or free >= rules.free_low else max(rules.free_high or 0, rules.free_low) - free
    if over <= 0 and short <= 0:
        return verdicts
    chosen: dict[str, Reason] = {}
    for verdict in sorted(
        filter(lambda verdict: _may_go_early(verdict, rules, now_ns), verdicts), key=lambda v: v.file.used_ns
    ):
        if over <= 0 and short <= 0:
            break
        chosen[verdict.file.name] = _early_reason(over, short)
        over, short = over - verdict.file.allocated, short - verdict.file.allocated
    return [
        replace(verdict, removes=True, reasons=(chosen[verdict.file.name],)) if verdict.file.name in chosen else verdict
        for verdict in verdicts
    ]


def _may_go_early(verdict: Verdict, rules: Rules, now_ns: int) -> bool:
    """Whether nothing but its age keeps a file that was not used just now."""
    is_young_only = {reason.code for reason in verdict.reasons} <= {"young", "no-ttl"}
    return not verdict.removes and is_young_only and now_ns - verdict.file.used_ns >= rules.keep_recent * NANOSECONDS


def _early_reason(over: int, short: int) -> Reason:
    if over > 0:
        return Reason("over-cap", f"nobody needs it, and the cache is {format_size(over)} over max_size")
    return Reason("low-space", f"nobody needs it, and {format_size(short)} are to be freed (free_low, free_high)")
