"""Guests that move with their volumes, which both hosts reach, perhaps under other names."""

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import counting_guest
import pytest
from counting_guest import COUNTED_AT
from libvirt_hosts import Hosts
from libvirt_pair import PAYLOAD, SIZE, SLOW, Pair, paired, with_volume
from libvirt_stage import command, local, record, wait_until
from versioned_objects import LibvirtLiveMigrateData

from underlay.compute import states, versioneddata
from underlay.compute.errors import ComputeError, MigrationPreCheckError, OperationFailed, VolumeAttachFailed
from underlay.compute.libvirt.attacheddisks import disks_in
from underlay.compute.libvirt.guestxml import devices_by_path
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip")

CONTENT = os.urandom(1 << 20)


def path_of(volume: Mapping[str, Any]) -> Path:
    return Path(volume["data"]["device_path"])


def elsewhere(pair: Pair, volume: Mapping[str, Any]) -> dict[str, Any]:
    """The same file as another host has it, under another name."""
    path = pair.there.root / f"volume-{uuid4()}"
    os.link(path_of(volume), path)
    return renamed(volume, path)


def renamed(volume: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {**volume, "data": {**volume["data"], "device_path": os.fspath(path)}}


@pytest.fixture
def devices(pair: Pair) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """One volume as a block device of each host."""
    file = pair.here.root / "device"
    file.write_bytes(CONTENT)
    with ExitStack() as holding:
        found = []
        for _ in range(2):
            made = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
            found.append(Path(made.stdout.strip()))
            holding.callback(command, "losetup", "--detach", made.stdout.strip())
        volume = local(found[0])
        yield volume, renamed(volume, found[1])


def usage(pair: Pair, instance: FakeInstance, *volumes: Mapping[str, Any]) -> list[list[str]]:
    """Of which volumes each of the two hosts counts what is read and written."""
    rows = [{"volume_id": volume["serial"], "device_name": None} for volume in volumes]
    asked = [{"instance": instance, "instance_bdms": rows}]
    hosts = (pair.source, pair.destination)
    return [sorted(told["volume"] for told in driver.get_all_volume_usage(None, asked)) for driver in hosts]


def serials(*volumes: Mapping[str, Any]) -> list[str]:
    return sorted(volume["serial"] for volume in volumes)


def test_volumes_go_along_and_have_the_names_that_the_destination_gives_them(
    pair: Pair, devices: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    file, (device, device_there) = pair.here.volume(content=CONTENT), devices
    file_there = elsewhere(pair, file)
    instance = pair.spawn()
    pair.attach(instance, file, there=file_there)
    pair.attach(instance, device, there=device_there)
    base = pair.source.site.host.disk(instance.uuid).base
    for turn in (pair, pair.back()):
        ours, theirs = ([file, device], [file_there, device_there])
        if turn is not pair:
            ours, theirs = theirs, ours
        data = turn.prepare(instance)
        assert ["disk"] == [disk.name for disk in data.local_disks]
        assert [("vdb", path_of(theirs[0])), ("vdc", path_of(theirs[1]))] == [
            (one.dev, path_of(one.connection_info)) for one in data.bdms
        ]
        assert [turn.here.name] == turn.holders(instance, *ours)
        assert "moved" == turn.move(instance, data)
        turn.finish(instance, data)
        assert turn.goes_on(turn.there, instance)
        assert ([], 1) == (turn.here.traces(instance), turn.machines(instance))
        assert [turn.there.name] == turn.holders(instance, *theirs)
        assert [[], serials(file, device)] == usage(turn, instance, file, device)
    assert [base] == [image.name for image in pair.source.site.host.images()[0]]
    pair.source.reboot(None, instance, [], "HARD", pair.info)
    wait_until(lambda: pair.counts(pair.here, instance)[:1] == [1], "it boots again")
    pair.source.power_off(instance)
    pair.source.detach_volume(None, device, instance, "/dev/vdc")
    assert ["node1"] == pair.holders(instance, file)
    assert PAYLOAD == pair.content(pair.here, instance)[1 << 16 :][: len(PAYLOAD)]
    assert [CONTENT, CONTENT] == [path_of(one).read_bytes()[: len(CONTENT)] for one in (file, device)]
    pair.destroy(instance)


def test_a_guest_that_boots_from_a_volume_moves_though_the_hosts_share_nothing_else(pair: Pair) -> None:
    path = pair.here.root / "root.raw"
    counting_guest.write_raw(path, size=SIZE)
    volume = local(path)
    image = FakeImage(id="", properties={"img_config_drive": "mandatory"})
    pair.info = with_volume(None, "/dev/vda", volume)
    pair.info["block_device_mapping"][0]["boot_index"] = 0
    pair.there_info = with_volume(None, "/dev/vda", elsewhere(pair, volume))
    instance = record(image, flavor=FakeFlavor(memory_mb=32, root_gb=0))
    pair.source.spawn(None, instance, image, [], "secret", {}, network_info=[], block_device_info=pair.info)
    wait_until(lambda: pair.counts(pair.here, instance), "the guest counts")
    with pytest.raises(ComputeError, match="none can be copied"):
        pair.check(instance, block=True)
    for wanted in (None, False):
        data = pair.check(instance, block=wanted)
        assert (False, False) == (data.block_migration, data.is_shared_instance_path)
        assert (True, True, ()) == (data.is_shared_block_storage, data.is_volume_backed, data.local_disks)
    drive = (pair.here.instances / instance.uuid / "disk.config").read_bytes()
    data = pair.prepare(instance, block=None)
    assert "moved" == pair.move(instance, data)
    pair.finish(instance, data)
    counted = pair.counts(pair.there, instance)
    assert pair.goes_on(pair.there, instance)
    assert ([], 1) == (pair.here.traces(instance), pair.machines(instance))
    assert drive == (pair.there.instances / instance.uuid / "disk.config").read_bytes()
    wait_until(lambda: counted_on(path) > (counted or [0])[-1], "it writes to its volume")
    pair.destroy(instance)


def counted_on(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(COUNTED_AT)
        return int.from_bytes(file.read(2), "little")


def test_a_volume_that_is_written_above_since_a_snapshot_goes_along_with_that(shared: Pair) -> None:
    """And the data of the migration are in objects as Nova's are."""
    volume = shared.here.volume(content=CONTENT)
    instance = shared.spawn()
    shared.attach(instance, volume)
    above = path_of(volume).with_name("s1")
    created = {"type": "qcow2", "snapshot_id": str(uuid4()), "new_file": "s1"}
    shared.source.volume_snapshot_create(None, instance, volume["serial"], created)
    data = shared.destination.check_can_live_migrate_destination(None, instance, {}, {}, block_migration=None)
    carried = versioneddata.write(data, LibvirtLiveMigrateData())
    assert carried is shared.source.check_can_live_migrate_source(None, instance, carried, shared.info)
    shared.destination.cleanup_live_migration_destination_check(None, carried)
    assert carried is shared.destination.pre_live_migration(None, instance, shared.info, [], None, carried)
    assert [volume["serial"], versioneddata.OURS] == [one.serial for one in carried.bdms]
    assert "moved" == shared.move(instance, carried)
    assert carried is shared.ended[0][1][-1]
    shared.finish(instance, carried)
    assert shared.goes_on(shared.there, instance)
    domain = shared.destination.site.domain(instance)
    for inactive in (False, True):
        assert os.fspath(above) in devices_by_path(domain.xml(inactive=inactive))
    deleted = {"type": "qcow2", "file_to_merge": "s1", "merge_target_file": path_of(volume).name}
    shared.destination.volume_snapshot_delete(None, instance, volume["serial"], "id", deleted)
    assert ["node2"] == shared.holders(instance, volume)
    shared.back().destroy(instance)


# ---------------------------------------------------------------------------------------------------------- it stays


def copying(pair: Pair, instance: FakeInstance) -> bool:
    told: Any = pair.source.site.domain(instance).ask(lambda found: found.jobStats(0))
    return bool(told.get("memory_total"))


def test_a_guest_whose_move_is_ended_keeps_its_volume_where_it_was(slow: Pair) -> None:
    volume = slow.here.volume(content=CONTENT)
    there = elsewhere(slow, volume)
    instance = slow.spawn()
    slow.attach(instance, volume, there=there)
    data = slow.prepare(instance)
    with slow.moving(instance, data) as answers:
        wait_until(lambda: copying(slow, instance), "its memory is copied")
        for driver in (slow.source, slow.destination):
            driver.manage_image_cache(None, [instance])
        slow.source.live_migration_abort(instance)
    assert ["stayed"] == answers
    slow.roll_back(instance, data)
    assert slow.goes_on(slow.here, instance)
    assert ([], ["node1"]) == (slow.there.traces(instance), slow.holders(instance, volume))
    slow.source.power_off(instance)
    slow.source.detach_volume(None, volume, instance, "/dev/vdb")
    assert [] == slow.holders(instance, volume)
    assert CONTENT == path_of(volume).read_bytes()[: len(CONTENT)]
    slow.destroy(instance)


def test_a_guest_that_ends_while_it_moves_is_off_where_it_was(slow: Pair) -> None:
    volume = slow.here.volume(content=CONTENT)
    instance = slow.spawn()
    slow.attach(instance, volume, there=elsewhere(slow, volume))
    data = slow.prepare(instance)
    with slow.moving(instance, data) as answers:
        wait_until(lambda: copying(slow, instance), "its memory is copied")
        slow.source.site.domain(instance).cut()
    assert ["stayed"] == answers
    slow.roll_back(instance, data)
    assert states.SHUTDOWN == slow.source.get_info(instance).state
    assert ([], [], 0) == (slow.there.traces(instance), slow.marks(slow.here, instance), slow.machines(instance))
    slow.source.power_on(None, instance, [], slow.info)
    wait_until(lambda: slow.counts(slow.here, instance)[:1] == [1], "it boots where it was")
    assert ["node1"] == slow.holders(instance, volume)
    slow.destroy(instance)


# --------------------------------------------------------------------------------------------------------- refusals


def other_there(pair: Pair, instance: FakeInstance, *, power_on: bool = False) -> FakeInstance:
    """Another instance, of the destination."""
    uuid = str(uuid4())
    other = replace(instance, uuid=uuid, id=instance.id + 1, name=f"instance-{uuid[:8]}", host="node2")
    image = FakeImage(id=f"file://{pair.here.images}/counting.raw", disk_format="raw")
    pair.destination.spawn(None, other, image, [], None, {}, network_info=[], power_on=power_on)
    return other


def test_a_volume_that_is_not_the_same_on_both_hosts_is_refused(pair: Pair) -> None:
    volume = pair.here.volume(content=CONTENT)
    there = elsewhere(pair, volume)
    instance = pair.spawn()
    pair.attach(instance, volume, there=there)
    data = pair.check(instance)
    copy = pair.there.root / "copy"
    copy.write_bytes(path_of(volume).read_bytes())
    shorter = pair.there.root / "shorter"
    shorter.write_bytes(CONTENT)
    wrong: dict[str, tuple[Mapping[str, Any] | None, type[ComputeError]]] = {
        "is not told how the volume": (None, MigrationPreCheckError),
        "which nobody has open": (with_volume(None, "/dev/vdb", renamed(volume, copy)), MigrationPreCheckError),
        "of 1048576 bytes, and of": (with_volume(None, "/dev/vdb", renamed(volume, shorter)), MigrationPreCheckError),
        "has no volume /dev/vdc": (with_volume(pair.there_info, "/dev/vdc", pair.here.volume()), MigrationPreCheckError),
        "cannot be reached": (with_volume(None, "/dev/vdb", renamed(volume, copy / "x")), VolumeAttachFailed),
        "qcow2, and raw on the source": (
            with_volume(None, "/dev/vdb", {**there, "data": {**there["data"], "format": "qcow2"}}),
            MigrationPreCheckError,
        ),
    }
    for said, (info, error) in wrong.items():
        with pytest.raises(error, match=said):
            pair.destination.pre_live_migration(None, instance, info, [], None, data)
        assert [] == pair.there.traces(instance)
    assert pair.goes_on(pair.here, instance)
    pair.destroy(instance)


def test_a_guest_whose_volumes_change_after_it_was_prepared_stays(pair: Pair) -> None:
    first, second = pair.here.volume(), pair.here.volume()
    instance = pair.spawn()
    pair.attach(instance, first)
    data = pair.prepare(instance)
    pair.attach(instance, second)
    assert "stayed" == pair.move(instance, data)
    pair.roll_back(instance, data)
    assert (["node1"], []) == (pair.holders(instance, first, second), pair.there.traces(instance))
    again = pair.prepare(instance)
    assert "moved" == pair.move(instance, again)
    pair.finish(instance, again)
    assert ["node2"] == pair.holders(instance, first, second)
    pair.destroy(instance)


def test_a_volume_that_an_instance_of_the_destination_has_is_refused(pair: Pair) -> None:
    volume = pair.here.volume()
    instance = pair.spawn()
    pair.attach(instance, volume)
    other = other_there(pair, instance)
    data = pair.prepare(instance)
    with pytest.raises(VolumeAttachFailed, match=f"the instance {instance.uuid} is to come here with it"):
        pair.destination.attach_volume(None, volume, other, "/dev/vdb")
    pair.roll_back(instance, data)
    pair.destination.attach_volume(None, volume, other, "/dev/vdb")
    data = pair.check(instance)
    with pytest.raises(VolumeAttachFailed, match=f"the instance {other.uuid} has it"):
        pair.destination.pre_live_migration(None, instance, pair.info, [], None, data)
    assert [] == pair.there.traces(instance)
    pair.destroy(other)
    (pair.here.instances / instance.uuid / "swapping").write_text("{}")
    with pytest.raises(MigrationPreCheckError, match="in another one's place"):
        pair.check(instance)
    (pair.here.instances / instance.uuid / "swapping").unlink()
    pair.destroy(instance)


def test_a_volume_that_is_shared_goes_along_to_others_that_have_it(pair: Pair) -> None:
    volume = {**pair.here.volume(content=CONTENT), "multiattach": True}
    alone = {**volume, "multiattach": False}
    instance = pair.spawn()
    pair.attach(instance, volume)
    other = other_there(pair, instance, power_on=True)
    pair.destination.attach_volume(None, volume, other, "/dev/vdb")
    data = pair.check(instance)
    with pytest.raises(MigrationPreCheckError, match="alone, and shared on the source"):
        pair.destination.pre_live_migration(None, instance, with_volume(None, "/dev/vdb", alone), [], None, data)
    assert [] == pair.there.traces(instance)
    data = pair.prepare(instance)
    assert "moved" == pair.move(instance, data)
    pair.finish(instance, data)
    assert pair.goes_on(pair.there, instance)
    for one in (instance, other):
        domain = pair.destination.site.domain(one)
        for inactive in (False, True):
            [disk] = [disk for disk in disks_in(domain.xml(inactive=inactive)) if disk.serial == volume["serial"]]
            assert (True, True) == (disk.shared, 'cache="none"' in disk.xml)
    assert states.RUNNING == pair.destination.get_info(other).state
    pair.destroy(other)
    pair.back().destroy(instance)


def test_a_guest_stays_while_its_service_does_not_know_of_a_swap(pair: Pair) -> None:
    old, new = pair.here.volume(), pair.here.volume()
    instance = pair.spawn()
    pair.attach(instance, old)
    pair.source.swap_volume(None, old, new, instance, "/dev/vdb", 0)
    with pytest.raises(MigrationPreCheckError, match=f"does not know yet that {new['serial']} is in the place of"):
        pair.check(instance)
    assert [] == pair.there.traces(instance)
    pair.info = with_volume(None, "/dev/vdb", new)
    assert [new["serial"]] == [volume.id for volume in pair.check(instance).volumes]
    pair.destroy(instance)


@pytest.mark.long
def test_memory_that_cannot_follow_any_more_leaves_the_guest_to_people(hosts: Hosts, tmp_path: Path) -> None:
    """Its other half has gone with the destination's QEMU: neither host can have it go on, and nobody's files are removed."""
    more = 'live_migration_permit_post_copy = true\ntimeout = "15s"\n'
    with paired(hosts, tmp_path, more=SLOW + more, shared=True) as pair:
        volume = pair.here.volume(content=CONTENT)
        instance = pair.spawn()
        pair.attach(instance, volume)
        data = pair.prepare(instance, block=None)
        failures: list[ComputeError] = []

        def move() -> None:
            try:
                pair.move(instance, data)
            except ComputeError as error:
                failures.append(error)

        working = threading.Thread(target=move)
        with pair.hosts.narrow():  # so that it does not all follow at once
            working.start()
            wait_until(lambda: copying(pair, instance), "its memory is copied")
            pair.source.live_migration_force_complete(instance)
            wait_until(lambda: pair.source.get_info(instance).state == states.PAUSED, "its memory is to follow")
            pair.destination.site.domain(instance).cut()
        working.join(60)
        assert not working.is_alive()
        assert [] == pair.ended
        assert [True] == ["not known" in str(error) for error in failures]
        with pytest.raises(OperationFailed, match="not known"):
            pair.source.unpause(instance)
        pair.restart_source()
        assert "leaving.node1" in pair.marks(pair.here, instance)
        pair.source.site.domain(instance).cut()  # whoever looks after the hosts has decided
        pair.destination.site.domain(instance).remove()
        pair.restart_source()
        pair.restart_destination()
        pair.source.power_on(None, instance, [], pair.info)
        wait_until(lambda: pair.counts(pair.here, instance)[:1] == [1], "it boots where it was")
        assert (["node1"], []) == (pair.holders(instance, volume), pair.marks(pair.here, instance))
        pair.destroy(instance)
