"""Images at paths of their users' own: linked where a link can be, else copied; in one step, and remembered."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

import pytest

from children import start, tell
from machine import MIB, Machine
from test_scrub import flip
from underlay.delivery import Delivered
from underlay.errors import CacheMissing, ImageNotFound, InvalidName
from underlay.host import Host
from underlay.model import Reason
from underlay.naming import path_key
from underlay.refs import parse_ref
from underlay.store import Store, copies
from underlay.testing.fakes import Recorder

Mounted = Callable[..., Path]
LATER = datetime(2100, 1, 1, tzinfo=UTC)
MASTERS = '[caches.masters]\nkind = "masters"\npath = "{}"\n'


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "masters").mkdir()
    (tmp_path / "nodes").mkdir()
    return Machine.make(tmp_path, extra=MASTERS.format(tmp_path / "masters"))


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


@pytest.fixture
def ref(machine: Machine) -> str:
    return machine.raw_image(size=4 * MIB)


def store_of(host: Host) -> Store:
    return host.config.caches["masters"]


def how(delivered: Delivered) -> tuple[str, str]:
    assert delivered.came is not None
    return delivered.came.code, delivered.reason.code


def test_an_image_is_linked_to_where_it_is_wanted(machine: Machine, host: Host, ref: str) -> None:
    path = machine.root / "nodes/disk"
    delivered = host.deliver(ref, path)
    assert ("fetched", "linked") == how(delivered)
    assert machine.root / "masters" == delivered.image.cache
    assert path.samefile(delivered.image.path)
    assert 2 == path.stat().st_nlink
    assert ["disk"] == os.listdir(path.parent)


def test_what_is_right_already_is_left_as_it_is(machine: Machine, host: Host, ref: str) -> None:
    path = machine.root / "nodes/disk"
    host.deliver(ref, path)
    before = path.parent.stat().st_mtime_ns
    again = host.deliver(ref, str(path))
    assert "delivered" == again.reason.code
    assert before == path.parent.stat().st_mtime_ns


@pytest.mark.component("leases")
def test_an_image_that_is_about_to_be_delivered_is_evicted_by_nobody(machine: Machine, host: Host, ref: str) -> None:
    cache = host.parts.cache("masters")
    with ExitStack() as holding:
        image = cache.ensure(parse_ref(ref), host.parts.source("file"), Recorder(), holding=holding).image
        kept = host.apply(host.plan_evict(str(image.path)))
        assert [["open"]] == [[reason.code for reason in verdict.reasons] for verdict in kept.verdicts]
    gone = host.apply(host.plan_evict(str(image.path)))
    assert [image.path] == gone.removed


def test_what_a_dead_delivery_left_goes_with_the_next_and_what_a_living_one_works_on_stays(
    machine: Machine, host: Host, ref: str
) -> None:
    path = machine.root / "nodes/disk"
    own = f".{path_key(path)[:16]}-{crc32(os.uname().nodename.encode()):08x}-"
    dead, living = (path.with_name(f"{own}{process}-1.underlay") for process in (2**22 + 1, os.getpid()))  # above pid_max
    for left in (dead, living):
        left.write_bytes(b"a part of it")
    host.deliver(ref, path)
    assert {"disk", living.name} == set(os.listdir(path.parent))


def test_another_file_there_is_replaced_in_one_step(machine: Machine, host: Host, ref: str) -> None:
    path = machine.root / "nodes/disk"
    path.write_bytes(b"what was there")
    held = path.open("rb")
    assert "linked" == host.deliver(ref, path).reason.code
    assert b"what was there" == held.read()
    held.close()
    assert path.samefile(host.find(ref)[0].path)


def test_a_newer_version_replaces_what_was_delivered_and_leaves_older_links(machine: Machine, host: Host, ref: str) -> None:
    first, second = machine.root / "nodes/first", machine.root / "nodes/second"
    host.deliver(ref, first)
    host.deliver(ref, second)
    old = first.read_bytes()
    machine.raw_image(size=4 * MIB, message="a newer version")
    assert ("fetched", "linked") == how(host.deliver(ref, second))
    assert old == first.read_bytes()
    assert second.samefile(host.find(ref)[0].path)
    assert not first.samefile(second)


def test_a_fetch_that_fails_leaves_what_is_there(machine: Machine, host: Host) -> None:
    path = machine.root / "nodes/disk"
    path.write_bytes(b"what was there")
    with pytest.raises(ImageNotFound):
        host.deliver(f"file://{machine.root}/nothing.raw", path)
    assert b"what was there" == path.read_bytes()
    assert ["disk"] == os.listdir(path.parent)


@pytest.mark.component("root", "tmpfs")
def test_where_no_link_can_be_it_is_a_copy_that_is_known_again(
    machine: Machine, host: Host, ref: str, mounted: Mounted
) -> None:
    path = mounted("tmpfs", 64 * MIB) / "disk"
    delivered = host.deliver(ref, path)
    assert "copied" == delivered.reason.code
    assert delivered.image.path.read_bytes() == path.read_bytes()
    inode = path.stat().st_ino
    assert "delivered" == host.deliver(ref, path).reason.code
    assert inode == path.stat().st_ino
    path.write_bytes(b"changed by whoever has it")
    assert "copied" == host.deliver(ref, path).reason.code
    assert delivered.image.path.read_bytes() == path.read_bytes()
    machine.raw_image(size=4 * MIB, message="a newer version")
    assert ("fetched", "copied") == how(host.deliver(ref, path))
    assert host.find(ref)[0].path.read_bytes() == path.read_bytes()


@pytest.mark.component("root", "tmpfs")
def test_a_copy_of_an_image_that_had_gone_bad_is_replaced_once_the_image_is_repaired(
    host: Host, ref: str, mounted: Mounted
) -> None:
    master = host.deliver(ref, mounted("tmpfs", 64 * MIB) / "first").image
    good = master.path.read_bytes()
    flip(master.path, 600)
    path = mounted("tmpfs", 64 * MIB) / "disk"
    assert "copied" == host.deliver(ref, path).reason.code
    assert good != path.read_bytes()
    time.sleep(1)  # when an image came is recorded to the second
    assert ["refetched"] == [one.repair.code for one in host.scrub().damaged if one.repair]

    assert "copied" == host.deliver(ref, path).reason.code

    assert good == path.read_bytes()
    assert "delivered" == host.deliver(ref, path).reason.code


@pytest.mark.component("root", "tmpfs")
def test_the_record_of_a_copy_that_an_older_version_wrote_counts(host: Host, ref: str, mounted: Mounted) -> None:
    path = mounted("tmpfs", 64 * MIB) / "disk"
    host.deliver(ref, path)
    [record] = store_of(host).paths.copies.iterdir()
    told = json.loads(record.read_bytes())
    del told["fetched_at"]
    record.write_text(json.dumps(told))
    assert "delivered" == host.deliver(ref, path).reason.code


@pytest.mark.component("root", "xfs")
def test_on_a_file_system_without_room_for_links_holes_are_kept(
    machine: Machine, host: Host, ref: str, mounted: Mounted
) -> None:
    path = mounted("xfs") / "disk"
    host.deliver(ref, path)
    assert path.stat().st_size == 4 * MIB
    assert path.stat().st_blocks * 512 < 3 * MIB


@pytest.mark.component("root", "tmpfs")
def test_a_copy_that_finds_no_room_leaves_what_is_there_and_no_record(machine: Machine, host: Host, mounted: Mounted) -> None:
    full = machine.raw_image(size=4 * MIB, payload=3 * MIB)
    path = mounted("tmpfs", MIB) / "disk"
    path.write_bytes(b"what was there")
    with pytest.raises(Exception, match="no room"):
        host.deliver(full, path)
    assert b"what was there" == path.read_bytes()
    assert ["disk"] == os.listdir(path.parent)
    assert ([], []) == copies.copies(store_of(host))


@pytest.mark.component("leases")
def test_a_link_keeps_a_base_image_as_long_as_it_is_there(machine: Machine, host: Host, ref: str) -> None:
    path = machine.root / "nodes/disk"
    image = host.deliver(ref, path, cache="base").image
    kept = host.apply(host.plan_prune(now=LATER, instances=()))
    assert ["linked"] == [reason.code for one in kept.verdicts for reason in one.reasons]
    path.unlink()
    gone = host.apply(host.plan_prune(now=datetime(2200, 1, 1, tzinfo=UTC), instances=()))
    assert [image.path] == list(gone.removed)


@pytest.mark.component("root", "tmpfs", "leases")
def test_a_copy_keeps_a_base_image_until_it_is_gone_or_changed(
    machine: Machine, host: Host, ref: str, mounted: Mounted
) -> None:
    path = mounted("tmpfs", 64 * MIB) / "disk"
    image = host.deliver(ref, path, cache="base").image
    kept = host.apply(host.plan_prune(now=LATER, instances=()))
    assert [Reason("copied", f"delivered as a copy to {path}")] == [reason for one in kept.verdicts for reason in one.reasons]
    path.write_bytes(b"its own by now")
    gone = host.apply(host.plan_prune(now=datetime(2200, 1, 1, tzinfo=UTC), instances=()))
    assert [image.path] == list(gone.removed)
    assert [] == copies.copies(host.config.caches["base"])[0]


def test_a_record_that_cannot_be_read_keeps_every_image_of_its_cache(machine: Machine, host: Host, ref: str) -> None:
    host.ensure(ref)
    directory = host.config.caches["base"].paths.copies
    directory.mkdir()
    for number, content in enumerate((b"{", b'{"layout":9}', b"\xff")):
        (directory / f"{number}.json").write_bytes(content)
    made = host.plan_prune(now=LATER, instances=())
    assert {"copy-unreadable"} == {unknown.code for unknown in made.unknowns}
    assert [False] == [verdict.removes for verdict in made.verdicts]


@pytest.mark.parametrize("path", ["relative", "/", "/srv/../srv/disk", "//srv/disk", "/srv/a\nb"])
def test_a_path_that_is_no_plain_one_is_refused(host: Host, ref: str, path: str) -> None:
    with pytest.raises(InvalidName):
        host.deliver(ref, path)


def test_a_path_inside_a_cache_is_refused(machine: Machine, host: Host, ref: str) -> None:
    (machine.root / "link").symlink_to(machine.base)
    for path in (machine.base / "disk", machine.root / "masters" / "disk", machine.root / "link" / "disk"):
        with pytest.raises(InvalidName, match="is a cache"):
            host.deliver(ref, path)


def test_what_is_no_plain_file_is_left_alone(machine: Machine, host: Host, ref: str) -> None:
    path = machine.root / "nodes/disk"
    path.symlink_to("elsewhere")
    with pytest.raises(InvalidName, match="no plain file"):
        host.deliver(ref, path)
    assert "elsewhere" == os.readlink(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidName, match="no plain file"):
        host.deliver(ref, path)


def test_a_directory_that_is_not_there_is_told_before_anything_is_fetched(machine: Machine, host: Host, ref: str) -> None:
    with pytest.raises(CacheMissing, match="nothing can be delivered"):
        host.deliver(ref, machine.root / "nowhere" / "disk")
    assert [] == host.images()[0]


def test_without_a_cache_of_masters_it_comes_from_the_first(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    delivered = machine.host().deliver(machine.raw_image(), tmp_path / "disk")
    assert machine.base == delivered.image.cache


def test_many_at_once_all_get_the_image_and_one_of_them_fetches(machine: Machine, host: Host, ref: str) -> None:
    paths = [machine.root / f"nodes/{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        delivered = list(pool.map(lambda path: host.deliver(ref, path), paths))
    assert 1 == [one.came.code for one in delivered if one.came].count("fetched")
    assert 17 == paths[0].stat().st_nlink
    assert 1 == len({path.stat().st_ino for path in paths})


def deliver_and_die(config: str, ref: str, path: str, call: str) -> None:
    host, real = Host.open(config), getattr(os, call)

    def die(*_arguments: object, **_options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    host.ensure(ref, cache="masters")
    tell("ready")
    setattr(os, call, die)
    host.deliver(ref, path)
    setattr(os, call, real)


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_crash_leaves_what_was_there_and_the_next_delivery_is_whole(
    machine: Machine, host: Host, ref: str, call: str
) -> None:
    path = machine.root / "nodes/disk"
    path.write_bytes(b"what was there")
    with start(deliver_and_die, machine.config, ref, path, call) as child:
        assert "ready" == child.hear()
        assert -signal.SIGKILL == child.process.wait(30)
    assert b"what was there" == path.read_bytes()
    assert "linked" == host.deliver(ref, path).reason.code
    assert ["disk"] == os.listdir(path.parent)


def test_the_command_says_where_the_image_is_and_how_it_came_there(
    machine: Machine, ref: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.root / "nodes/disk"
    answer = machine.call("fetch", ref, "--to", path, "--json").json
    assert (str(path), "linked") == (answer["delivered"]["path"], answer["delivered"]["reason"]["code"])
    assert "fetched" == answer["reason"]["code"]
    assert f"delivered {path}: it is there already" in machine.call("fetch", ref, "--to", path).out
    monkeypatch.chdir(path.parent)
    assert str(path.parent / "other") == machine.call("fetch", ref, "--to", "other", "--json").json["delivered"]["path"]
    refused = machine.call("fetch", ref, "--to", machine.base / "disk", "--json")
    assert (14, "invalid-name") == (refused.status, refused.error["code"])
    assert subprocess.run(["cmp", path, path.parent / "other"], check=False).returncode == 0
