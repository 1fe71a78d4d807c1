"""Masters: what nobody has a link to goes when it is older than the ttl, or when the cache is over its size."""

import os
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machine import MIB, Machine
from underlay.host import Host
from underlay.plan import Plan

pytestmark = pytest.mark.component("leases")

DAY = 86400.0
NOW = datetime(2030, 1, 1, tzinfo=UTC)
TABLE = '[caches.masters]\nkind = "masters"\npath = "{}"\n{}\n'


def host_with(tmp_path: Path, rules: str) -> Host:
    (tmp_path / "masters").mkdir()
    return Machine.make(tmp_path, extra=TABLE.format(tmp_path / "masters", rules)).host()


def master(host: Host, name: str, *, age: float, size: int = MIB, converted: bool = False) -> Path:
    """A master that was last used so long before `NOW`."""
    stem = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    path = host.config.caches["masters"].root / (f"{stem}.converted" if converted else stem)
    path.write_bytes(os.urandom(size))
    moment = (NOW - timedelta(seconds=age)).timestamp()
    os.utime(path, (moment, moment))
    return path


def judged(plan: Plan) -> dict[str, list[str]]:
    return {os.fspath(one.path): [reason.code for reason in one.reasons] for one in plan.verdicts}


def pruned(host: Host, *, at: datetime = NOW) -> set[Path]:
    return set(host.apply(host.plan_prune(now=at, instances=(), cache="masters")).removed)


def test_a_master_that_is_older_than_the_ttl_goes_and_one_that_is_just_as_old_stays(tmp_path: Path) -> None:
    host = host_with(tmp_path, 'ttl = "7d"')
    old, just, young = (master(host, str(age), age=age) for age in (7 * DAY + 1, 7 * DAY, DAY))
    assert {old} == pruned(host)
    assert just.exists()
    assert young.exists()


def test_a_master_that_somebody_has_a_link_to_stays_whatever_its_age_and_gets_its_whole_ttl_afterwards(tmp_path: Path) -> None:
    host = host_with(tmp_path, 'ttl = "7d"')
    path = master(host, "a", age=100 * DAY)
    (tmp_path / "node").hardlink_to(path)
    assert set() == pruned(host)
    (tmp_path / "node").unlink()
    assert set() == pruned(host, at=NOW + timedelta(days=7))
    assert {path} == pruned(host, at=NOW + timedelta(days=7, seconds=1))


def test_over_its_size_the_least_recently_used_go_and_what_is_in_use_counts(tmp_path: Path) -> None:
    host = host_with(tmp_path, 'max_size = "3MiB"\nkeep_recent = "1h"')
    oldest, used, middle, newest, recent = (
        master(host, str(age), age=age, converted=age > DAY) for age in (5 * DAY, 4 * DAY, 3 * DAY, 2 * DAY, 60.0)
    )
    (tmp_path / "node").hardlink_to(used)
    assert {oldest, middle} == pruned(host)
    assert all(path.exists() for path in (used, newest, recent))


def test_what_was_used_just_now_stays_though_the_cache_is_over_its_size(tmp_path: Path) -> None:
    host = host_with(tmp_path, 'max_size = "1MiB"')
    paths = [master(host, str(number), age=60.0) for number in range(3)]
    assert set() == pruned(host)
    assert all(path.exists() for path in paths)


def test_a_pin_and_an_unreadable_lease_keep_masters(tmp_path: Path) -> None:
    host = host_with(tmp_path, 'ttl = "1d"')
    path = master(host, "a", age=100 * DAY)
    host.pin(path.name, holder="test")
    assert [["pin"]] == [codes[:1] for codes in judged(host.plan_prune(now=NOW, instances=(), cache="masters")).values()]
    host.unpin(path.name, holder="test")
    (host.config.caches["masters"].paths.leases / "odd.json").write_bytes(b"{")
    assert [["lease-unreadable"]] == list(judged(host.plan_prune(now=NOW, instances=(), cache="masters")).values())


def test_what_an_inventory_does_not_tell_is_no_matter_to_masters(tmp_path: Path) -> None:
    (tmp_path / "masters").mkdir()
    machine = Machine.make(tmp_path, extra=TABLE.format(tmp_path / "masters", 'ttl = "1d"'))
    machine.config.write_text(
        machine.config.read_text().replace("[instances]\n", f'[instances]\ninventory = "file:{tmp_path}/nothing.json"\n')
    )
    host = machine.host()
    path = master(host, "a", age=100 * DAY)
    report = host.apply(host.plan_prune(now=NOW, cache="masters"))
    assert [path] == list(report.removed)
    assert "inventory-unavailable" in {problem.code for problem in report.problems}


def test_strangers_and_links_among_masters_are_left_alone(tmp_path: Path) -> None:
    host = host_with(tmp_path, 'ttl = "1d"\nmax_size = "1B"')
    root = host.config.caches["masters"].root
    (root / "snponly.efi").write_bytes(b"x")
    (root / str(uuid.uuid4())).symlink_to("nowhere")
    (root / "tmpabcd").mkdir()
    before = sorted(os.listdir(root))
    assert set() == pruned(host)
    assert [*before] == sorted(name for name in os.listdir(root) if name != ".underlay")
