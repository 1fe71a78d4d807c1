"""Plans over the caches of this host, and the hosts that share their storage: who needs what."""

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from underlay import lookup
from underlay.errors import NotCached, UnknownHost
from underlay.host.parts import Parts
from underlay.model import InstanceRecord
from underlay.plan import Plan
from underlay.prune import observation, reclaim
from underlay.refs import is_ref
from underlay.store import hosts, registry
from underlay.store.hosts import HostUse
from underlay.values import replace


def plan_prune(
    parts: Parts,
    *,
    now: datetime | None,
    instances: Sequence[InstanceRecord] | None,
    beside: Sequence[InstanceRecord],
    cache: str | None,
) -> Plan:
    """See `underlay.host.Host.plan_prune`."""
    return observation.make_plan(parts.config, parts.judged(cache), parts.known(instances, beside=beside), now=now)


def plan_reclaim(
    parts: Parts, need: int, path: Path, *, instances: Sequence[InstanceRecord] | None, now: datetime | None
) -> Plan:
    """See `underlay.host.Host.plan_reclaim`."""
    goal = reclaim.Goal(path=path, missing=need - reclaim.free_now(path))
    return reclaim.make_reclaim_plan(parts.config, parts.known(instances), goal, now=now)


def plan_free(parts: Parts, amount: int, path: Path, *, cache: str | None, now: datetime | None) -> Plan:
    """See `underlay.host.Host.plan_free`."""
    goal = reclaim.Goal(path=path, missing=amount, slack=0)
    names = None if cache is None else parts.judged(cache)
    return reclaim.make_reclaim_plan(parts.config, parts.known(None), goal, names=names, now=now)


def check_judged(parts: Parts, plan: Plan) -> None:
    """See `underlay.host.Host.check_judged`."""
    for name in parts.judged(None) if not plan.clocks else ():
        parts.config.caches[name].check()


def plan_for(parts: Parts, text: str, *, instances: Sequence[InstanceRecord] | None, now: datetime | None = None) -> Plan:
    """A plan with the verdicts on what a name, a ref or a path means, and no others.

    Raises:
        NotCached, InvalidRef
    """
    names = parts.judged(None)
    plan = observation.make_plan(parts.config, names, parts.known(instances), now=now)
    check_judged(parts, plan)
    meant = lookup.verdicts_meant([parts.config.caches[name] for name in names], plan.verdicts, text)
    return replace(plan, verdicts=meant, whole=False)


def plan_evict(parts: Parts, text: str, *, instances: Sequence[InstanceRecord] | None) -> Plan:
    """See `underlay.host.Host.plan_evict`."""
    plan = plan_for(parts, text, instances=instances)
    if len(plan.verdicts) > 1 and not is_ref(text):
        names = ", ".join(os.fspath(verdict.path) for verdict in plan.verdicts[:5])
        raise NotCached(f"{text!r} means {len(plan.verdicts)} files: {names}", hint="name one of them by its path")
    return observation.asked_for(plan)


def hosts_said(parts: Parts) -> list[tuple[Path, HostUse]]:
    """See `underlay.host.Host.hosts`."""
    found = []
    for store in parts.stores():
        said, problems = hosts.hosts(store)
        found += [(store.root, use) for use in said]
        parts.tell(problems)
    return found


def retire(parts: Parts, host: str) -> None:
    """See `underlay.host.Host.retire_host`."""
    is_known = False
    for store in parts.stores():
        is_known = registry.forget(store, host) or is_known
        with suppress(UnknownHost):
            hosts.retire(store, host)
            is_known = True
    if not is_known:
        raise UnknownHost(f"no host {host!r} has said what it uses", hint="'underlay hosts' shows them")
