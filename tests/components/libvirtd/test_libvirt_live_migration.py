"""Guests that run move between two real libvirts, and go on where they come."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from counting_guest import COUNTED_AT
from libvirt_hosts import Hosts
from libvirt_pair import BLOCK_DEVICES, FACTS, PAYLOAD, SLOW, Pair, facts_of, paired
from libvirt_stage import wait_until

from underlay.compute import events, states
from underlay.compute.errors import (
    ComputeError,
    InstanceExists,
    InstanceNotFound,
    InvalidInput,
    InvalidLocalStorage,
    InvalidSharedStorage,
    MigrationPreCheckError,
    OperationFailed,
    UnableToMigrateToSelf,
    VirtualInterfacePlugException,
)
from underlay.compute.libvirt.devicerecords import records_of, tags_of_vifs
from underlay.compute.libvirt.guestxml import parsed
from underlay.compute.libvirt.livemigration import checks
from underlay.compute.livemigration import InterfaceMigrateData, LibvirtLiveMigrateData, UnderlayLiveMigrateData, VIFMigrateData
from underlay.testing.fakedriver import FakeInstance, fake_vif
from underlay.values import replace as with_changes

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip", "mkfs.ext4")


def prune(pair: Pair) -> None:
    """On both hosts, of everything that nobody needs, however new."""
    for driver in (pair.source, pair.destination):
        host = driver.site.host
        host.apply(host.plan_prune(now=datetime.now(UTC) + timedelta(days=30)))


def transitions(heard: list[Any]) -> list[int]:
    return [event.transition for event in heard]


def test_a_guest_moves_with_no_more_than_its_disks_hold_beside_their_images(pair: Pair, bridge: str) -> None:
    pair.info, pair.network_info = {**BLOCK_DEVICES, "ephemerals": []}, [fake_vif(bridge=bridge)]
    instance = pair.spawn(properties={"img_config_drive": "mandatory"})
    base = pair.source.site.host.disk(instance.uuid).base
    data = pair.prepare(instance)
    assert [False, True] == [disk.whole for disk in data.local_disks]
    assert "secret" not in repr(data)
    prune(pair)
    assert "moved" == pair.move(instance, data)
    last, half = pair.counts(pair.here, instance)[-1], pair.here.console(instance).rpartition("\n")[2]
    drive = (pair.here.instances / instance.uuid / "disk.config").read_bytes()
    prune(pair)
    pair.finish(instance, data)

    counted = pair.counts(pair.there, instance) if pair.goes_on(pair.there, instance) else []
    text = half + pair.there.console(instance)  # it may move in the middle of a line
    assert last + 1 == int(text.split("\n")[0], 16)  # the very next that it counts
    assert (states.RUNNING, 1) == (pair.destination.get_info(instance).state, pair.machines(instance))
    assert [] == pair.here.traces(instance)
    told = facts_of(pair, instance)
    assert (base, "qcow2") == (told["disk"]["backing_file"], told["disk"]["type"])
    assert int(told["disk"]["disk_size"]) < len(PAYLOAD)  # its image came from the cache
    assert "raw" == told["disk.swap"]["type"]
    assert int(told["disk.swap"]["disk_size"]) < 64 << 20
    assert drive == (pair.there.instances / instance.uuid / "disk.config").read_bytes()
    wait_until(lambda: events.EVENT_LIFECYCLE_MIGRATION_COMPLETED in transitions(pair.heard["node1"]), "that it left is told")
    assert not {events.EVENT_LIFECYCLE_STOPPED, events.EVENT_LIFECYCLE_PAUSED} & {*transitions(pair.heard["node1"])}

    prune(pair)
    assert base in {image.name for image in pair.destination.site.host.images()[0]}
    assert [] == [image.name for image in pair.source.site.host.images()[0]]
    pair.destination.power_off(instance)
    content = pair.content(pair.there, instance)
    assert PAYLOAD == content[1 << 16 :][: len(PAYLOAD)]
    assert last < int.from_bytes(content[COUNTED_AT : COUNTED_AT + 2], "little")
    assert counted
    assert b"SWAPSPACE2" == pair.content(pair.there, instance, "disk.swap")[4086:4096]
    pair.destination.power_on(None, instance, pair.network_info, pair.info)
    wait_until(lambda: pair.counts(pair.there, instance)[:1] == [1], "it boots where it is now")
    pair.destroy(instance)


def test_swap_and_file_systems_come_as_they_were_made(pair: Pair) -> None:
    pair.info = BLOCK_DEVICES
    instance = pair.spawn()
    other = pair.destination.site.host.create_swap("other", "64MiB")  # with a UUID of its own
    before = pair.source.site.host
    swap, ephemeral = ((before.disk(instance.uuid, name=name).base_path or Path()) for name in ("disk.swap", "disk.eph0"))
    was = swap.read_bytes()[:4096], ephemeral.read_bytes()[: 1 << 20]
    assert was[0] != (other.base_path or Path()).read_bytes()[:4096]
    data = pair.prepare(instance)
    assert "moved" == pair.move(instance, data)
    pair.finish(instance, data)
    pair.destination.power_off(instance)
    assert was[0] == pair.content(pair.there, instance, "disk.swap")[:4096]
    assert was[1] == pair.content(pair.there, instance, "disk.eph0")[: 1 << 20]
    pair.destroy(instance)


def test_a_guest_whose_image_cannot_be_had_there_is_copied_whole(hosts: Hosts, tmp_path: Path) -> None:
    with paired(hosts, tmp_path, apart=True) as pair:
        instance = pair.spawn()
        data = pair.prepare(instance)
        assert [True] == [disk.whole for disk in data.local_disks]
        assert "moved" == pair.move(instance, data)
        pair.finish(instance, data)
        assert pair.goes_on(pair.there, instance)
        assert ("raw", "") == tuple(facts_of(pair, instance)["disk"][name] for name in ("type", "backing_file"))
        pair.destination.reboot(None, instance, [], "HARD", {"block_device_mapping": []})
        wait_until(lambda: pair.counts(pair.there, instance)[:1] == [1], "it boots where it is now")
        pair.destination.power_off(instance)
        assert PAYLOAD == pair.content(pair.there, instance)[1 << 16 :][: len(PAYLOAD)]
        pair.destroy(instance)


def test_another_image_under_the_same_name_is_not_taken_for_the_guest_s(pair: Pair) -> None:
    instance = pair.spawn()
    image = pair.here.images / "counting.raw"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)  # which is what the second host would fetch
    data = pair.prepare(instance)
    assert [True] == [disk.whole for disk in data.local_disks]
    assert "moved" == pair.move(instance, data)
    pair.finish(instance, data)
    assert pair.goes_on(pair.there, instance)
    pair.destroy(instance)


@pytest.mark.long
@pytest.mark.parametrize(("here", "there"), [("qcow2", "flat"), ("flat", "qcow2")])
def test_the_two_hosts_may_keep_disks_otherwise(hosts: Hosts, tmp_path: Path, here: str, there: str) -> None:
    with paired(hosts, tmp_path, there_too=f'images_type = "{there}"\n') as pair:
        site = pair.source.site
        assert pair.source._running is not None
        pair.source._running = replace(
            pair.source._running, site=replace(site, options=with_changes(site.options, images_type=here))
        )
        instance = pair.spawn()
        data = pair.prepare(instance)
        assert [False] == [disk.whole for disk in data.local_disks]
        assert "moved" == pair.move(instance, data)
        pair.finish(instance, data)
        assert pair.goes_on(pair.there, instance)
        pair.destination.power_off(instance)
        assert PAYLOAD == pair.content(pair.there, instance)[1 << 16 :][: len(PAYLOAD)]
        pair.destroy(instance)


def test_a_guest_on_shared_storage_moves_there_and_back(shared: Pair) -> None:
    pair = shared
    instance = pair.spawn(properties={"img_config_drive": "mandatory"})
    base = pair.source.site.host.disk(instance.uuid).base
    before = pair.counts(pair.here, instance)
    for _ in range(2):
        data = pair.prepare(instance, block=None)
        assert (False, True) == (data.block_migration, data.is_shared_instance_path)
        prune(pair)
        assert "moved" == pair.move(instance, data)
        prune(pair)
        pair.finish(instance, data)
        assert pair.goes_on(pair.there, instance)
        assert before == pair.counts(pair.here, instance)[: len(before)]  # what it said before is still there
        prune(pair)
        assert base in {image.name for image in pair.destination.site.host.images()[0]}
        pair.source.cleanup(None, instance, [], destroy_disks=True, migrate_data=data)  # they are the other's now
        with pytest.raises(OperationFailed, match="is open"):
            pair.source.cleanup(None, instance, [], destroy_disks=True)  # whoever does not know of that
        assert 1 == pair.machines(instance)
        assert [] == pair.marks(pair.here, instance)
        pair = replace(
            pair, here=pair.there, there=pair.here, source=pair.destination, destination=pair.source, ended=pair.ended
        )
    pair.destroy(instance)


def test_a_paused_guest_moves_and_stays_paused(pair: Pair) -> None:
    instance = pair.spawn()
    pair.source.pause(instance)
    data = pair.prepare(instance)
    assert "moved" == pair.move(instance, data)
    pair.finish(instance, data)
    assert states.PAUSED == pair.destination.get_info(instance).state
    pair.destination.unpause(instance)
    assert pair.goes_on(pair.there, instance)
    pair.destroy(instance)


def test_the_service_is_told_once_with_what_it_expects(pair: Pair) -> None:
    instance = pair.spawn()
    data = pair.prepare(instance)
    assert "stayed" == pair.move(instance, data, dest="nowhere.invalid")
    assert [("stayed", (None, instance, "nowhere.invalid", data), {})] == pair.ended
    assert pair.goes_on(pair.here, instance)
    assert "moved" == pair.move(instance, data)
    assert [("moved", (None, instance, "node2", True, data), {})] == pair.ended
    pair.finish(instance, data)
    pair.destroy(instance)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its traceback is for people to see
def test_a_move_that_breaks_off_unexpectedly_is_none(pair: Pair) -> None:
    instance = pair.spawn()
    data = pair.prepare(instance)
    wrong: Any = None  # as if the other host had said that
    broken = replace(data, interfaces=(InterfaceMigrateData(address=wrong, device="tap0"),))
    assert "stayed" == pair.move(instance, broken)
    pair.roll_back(instance, data)
    assert pair.goes_on(pair.here, instance)
    assert ([], 1) == (pair.there.traces(instance), pair.machines(instance))
    pair.destroy(instance)


# ----------------------------------------------------------------------------------------------------------- meanwhile


def copying(pair: Pair, instance: FakeInstance) -> bool:
    """Whether its memory is being copied."""
    domain = pair.source.site.domain(instance)
    told: Any = domain.connection.ask(lambda handle: handle.lookupByUUIDString(instance.uuid).jobStats(0))
    return bool(told.get("memory_total"))


def test_a_move_is_ended_and_the_guest_stays(slow: Pair) -> None:
    instance = slow.spawn()
    data = slow.prepare(instance)
    with slow.moving(instance, data) as answers:
        wait_until(lambda: copying(slow, instance), "its memory is copied")
        with pytest.raises(OperationFailed, match="already"):
            slow.source.live_migration(None, instance, "node2", print, print, block_migration=True, migrate_data=data)
        slow.source.live_migration_abort(instance)
    assert ["stayed"] == answers
    assert {"migration_status": "cancelled"} == slow.ended[0][2]
    slow.roll_back(instance, data)
    assert slow.goes_on(slow.here, instance)
    assert ([], 1) == (slow.there.traces(instance), slow.machines(instance))
    for ask in (slow.source.live_migration_abort, slow.source.live_migration_force_complete):
        with pytest.raises(OperationFailed, match="not being migrated"):
            ask(instance)
    slow.destroy(instance)
    with pytest.raises(InstanceNotFound):
        slow.source.live_migration_abort(instance)


@pytest.mark.long
def test_a_move_that_takes_too_long_is_ended(hosts: Hosts, tmp_path: Path) -> None:
    with paired(hosts, tmp_path, more=SLOW + 'live_migration_completion_timeout = "1s"\n') as pair:
        instance = pair.spawn()
        data = pair.prepare(instance)
        began = time.monotonic()
        assert "stayed" == pair.move(instance, data)
        assert 4 <= time.monotonic() - began  # 2 GiB of memory and 2 of its disk are the least that is counted
        assert {"migration_status": "cancelled"} == pair.ended[0][2]
        pair.roll_back(instance, data)
        assert pair.goes_on(pair.here, instance)
        pair.destroy(instance)


def test_a_guest_stands_still_when_its_move_is_to_complete(slow: Pair) -> None:
    instance = slow.spawn()
    data = slow.prepare(instance)
    with slow.moving(instance, data) as answers:
        wait_until(lambda: copying(slow, instance), "its memory is copied")
        slow.source.live_migration_force_complete(instance)
    assert ["moved"] == answers
    slow.finish(instance, data)
    assert slow.goes_on(slow.there, instance)
    slow.destroy(instance)


def test_memory_follows_when_a_move_is_to_complete_and_that_is_permitted(hosts: Hosts, tmp_path: Path) -> None:
    more = 'live_migration_permit_post_copy = true\nlive_migration_timeout_action = "force_complete"\n'
    with paired(hosts, tmp_path, more=SLOW + more + 'live_migration_completion_timeout = "0.5s"\n') as pair:
        instance = pair.spawn()
        data = pair.prepare(instance)
        assert "moved" == pair.move(instance, data)
        pair.finish(instance, data)
        assert pair.goes_on(pair.there, instance)
        wait_until(lambda: events.EVENT_LIFECYCLE_POSTCOPY_STARTED in transitions(pair.heard["node1"]), "that is told")
        pair.destroy(instance)


# -------------------------------------------------------------------------------------------------------------- refusals


def off(pair: Pair, instance: FakeInstance) -> None:
    pair.source.power_off(instance)


def with_volume(pair: Pair, instance: FakeInstance) -> None:
    """One that the service knows, and the guest does not."""
    pair.info = {"block_device_mapping": [{"mount_device": "/dev/vdb", "connection_info": pair.here.volume()}]}


def attached(pair: Pair, instance: FakeInstance) -> None:
    """A volume of which the caller says nothing."""
    pair.source.attach_volume(None, pair.here.volume(), instance, "/dev/vdb")


def with_disk(pair: Pair, instance: FakeInstance) -> None:
    """Of which the service does not know."""
    file = pair.here.root / "other.raw"
    file.write_bytes(bytes(1 << 20))
    driver, target = '<driver name="qemu" type="raw"/>', '<target dev="vdd" bus="virtio"/>'
    pair.source.site.domain(instance).attach(f'<disk type="file">{driver}<source file="{file}"/>{target}</disk>')


REFUSED: dict[str, tuple[Callable[[Pair, FakeInstance], None], bool | None, type[ComputeError], str]] = {
    "off": (off, True, MigrationPreCheckError, "does not run"),
    "volume": (with_volume, True, MigrationPreCheckError, "is not attached to the instance"),
    "attached": (attached, True, MigrationPreCheckError, "no volume of which its service says"),
    "disk": (with_disk, True, MigrationPreCheckError, "other.raw open, which is no disk"),
    "not-shared": (lambda pair, instance: None, False, InvalidSharedStorage, "is another than on node1"),
}


def test_what_cannot_move_is_refused_before_anything_is_made(pair: Pair) -> None:
    instance = pair.spawn()
    for change, block, error, said in (REFUSED[name] for name in ("not-shared", "volume", "disk", "attached", "off")):
        change(pair, instance)
        with pytest.raises(error, match=said):
            pair.check(instance, block=block)
        pair.info = None
    assert [] == pair.there.traces(instance)
    assert [] == [*pair.there.instances.glob(".probe*")]
    pair.destroy(instance)


def test_the_destination_is_another_host_with_room(pair: Pair) -> None:
    instance = pair.spawn()
    with pytest.raises(UnableToMigrateToSelf):
        pair.source.check_can_live_migrate_destination(None, instance, FACTS, FACTS)
    with pytest.raises(MigrationPreCheckError, match="has a domain"):
        pair.source.check_can_live_migrate_destination(None, replace(instance, host="node3"), FACTS, FACTS)
    for over_commit, facts in ((False, {"disk_available_least": 0}), (True, {"free_disk_gb": 0})):
        data = pair.destination.check_can_live_migrate_destination(
            None, instance, FACTS, facts, block_migration=True, disk_over_commit=over_commit
        )
        with pytest.raises(MigrationPreCheckError, match="the disks need"):
            pair.source.check_can_live_migrate_source(None, instance, data)
    unknown = pair.destination.check_can_live_migrate_destination(None, instance, {}, {}, block_migration=True)
    assert unknown.disk_available_mb > 0
    with pytest.raises(MigrationPreCheckError, match="does not say"):
        pair.source.check_can_live_migrate_source(None, instance, LibvirtLiveMigrateData(filename="x"))
    pair.destination.manage_image_cache(None, [])  # at any moment
    assert unknown.filename in {path.name for path in pair.there.instances.glob(".probe*")}
    pair.restart_destination()
    assert [] == [*pair.there.instances.glob(".probe*")]  # a service that is killed leaves its own to its next start
    pair.destroy(instance)


def test_a_processor_has_to_have_what_the_source_s_has(pair: Pair) -> None:
    site = replace(pair.destination.site, virt_type="kvm")
    capabilities: str = site.connection.ask(lambda handle: handle.getCapabilities())
    own = parsed(capabilities).find("host/cpu")
    assert own is not None
    told: dict[str, Any] = {
        "arch": own.findtext("arch"),
        "model": own.findtext("model"),
        "vendor": own.findtext("vendor"),
        "features": [],
    }
    checks.check_processor(site, json.dumps(told))
    for more in ({"features": ["vmx", "svm"]}, {"arch": "s390x", "model": "z14"}):  # none has both, one is another
        with pytest.raises(ComputeError):
            checks.check_processor(site, json.dumps(told | more))


def test_storage_is_shared_with_its_images_or_not_at_all(shared: Pair, tmp_path: Path) -> None:
    instance = shared.spawn()
    with pytest.raises(InvalidLocalStorage, match="the same"):
        shared.check(instance, block=True)
    cache, local = shared.here.instances / "_base", tmp_path / "local"
    cache.rename(local)
    cache.symlink_to(local)  # a host's own cache, in the directory that is shared
    with pytest.raises(InvalidSharedStorage, match="another host may have another file"):
        shared.check(instance, block=None)
    cache.unlink()
    local.rename(cache)
    shared.destroy(instance)


@pytest.mark.parametrize("dest", ["", "../x", "a b", "-x", "h/system?socket=/tmp/s", "x" * 300, "a\n"])
def test_a_destination_is_a_host_s_name(pair: Pair, dest: str) -> None:
    data = UnderlayLiveMigrateData(host="node2", block_migration=True)
    with pytest.raises(InvalidInput, match="no name and no address"):
        pair.source.live_migration(None, FakeInstance(), dest, print, print, block_migration=True, migrate_data=data)


def test_what_is_there_already_is_not_written_over(pair: Pair) -> None:
    instance = pair.spawn()
    data = pair.check(instance)
    there = pair.there.instances / instance.uuid
    there.mkdir()
    (there / "disk").write_text("somebody's")
    with pytest.raises(InstanceExists):
        pair.destination.pre_live_migration(None, instance, None, [], None, data)
    pair.destination.rollback_live_migration_at_destination(None, instance, [], None, migrate_data=data)
    assert "somebody's" == (there / "disk").read_text()
    (there / "disk").unlink()
    there.rmdir()
    pair.destroy(instance)


def test_a_preparation_that_fails_leaves_nothing(pair: Pair, bridge: str) -> None:
    instance = pair.spawn()
    data = pair.check(instance)
    with pytest.raises(VirtualInterfacePlugException):
        pair.destination.pre_live_migration(None, instance, None, [fake_vif(bridge="ul-nowhere")], None, data)
    with pytest.raises(ComputeError, match="nowhere"):
        pair.destination.pre_live_migration(None, replace(instance, kernel_id="file:///nowhere/k"), None, [], None, data)
    with pytest.raises(MigrationPreCheckError, match="damaged"):
        pair.destination.pre_live_migration(None, instance, None, [], None, replace(data, config_drive="%"))
    assert [] == pair.there.traces(instance)
    with pytest.raises(InstanceNotFound):
        pair.destination.post_live_migration_at_destination(None, instance, [])
    pair.destroy(instance)


def test_interfaces_are_as_the_network_service_has_them_there(pair: Pair, bridge: str) -> None:
    """And where they were in the guest, now and at its next start, so that what is written down of their tags is true."""
    pair.info, pair.network_info = {**BLOCK_DEVICES, "swap": None, "ephemerals": []}, [fake_vif(bridge=bridge)]
    instance = pair.spawn()
    late = fake_vif(2, bridge=bridge) | {"tag": "late"}
    pair.source.attach_interface(None, instance, instance.image_meta, late)
    pair.network_info.append(late)
    before = pair.source.site.domain(instance).xml(), pair.source.site.domain(instance).xml(inactive=True)
    data = pair.check(instance)
    other = VIFMigrateData(port_id=pair.network_info[0]["id"], vif_type="bridge", vif_details={"bridge_name": f"{bridge}x"})
    with pytest.raises(VirtualInterfacePlugException, match=f"{bridge}x"):
        pair.destination.pre_live_migration(None, instance, None, pair.network_info, None, replace(data, vifs=(other,)))
    ready = pair.destination.pre_live_migration(None, instance, None, pair.network_info, None, data)
    assert "moved" == pair.move(instance, ready)
    pair.finish(instance, ready)
    devices = parsed(pair.destination.site.domain(instance).xml()).find("devices/interface/source")
    assert devices is not None
    assert bridge == devices.get("bridge")
    after = pair.destination.site.domain(instance).xml(), pair.destination.site.domain(instance).xml(inactive=True)
    [record] = instance.device_metadata.devices
    tags = tags_of_vifs(pair.network_info)
    assert [[record]] * 4 == [[*getattr(records_of(text, tags), "devices", ())] for text in (*before, *after)]
    pair.destroy(instance)
