"""Disks that are no files, kept by a third party's backend that pip installed: recorded, found again, one of a name."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from installed import install_backend
from machine import GIB, MIB, Machine
from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    InvalidName,
    StorageFailed,
    UnknownBackend,
    Unsupported,
)
from underlay.host import Host
from underlay.model import BaseImage, DiskSpec, InstanceDisk
from underlay.store import volumes as records
from underlay.testing.fakedisks import FakeBackend
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    install_backend(directory)
    return directory


@pytest.fixture
def storage(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBackend]:
    """What the installed backend keeps its disks in."""
    monkeypatch.syspath_prepend(site)
    found: FakeBackend = importlib.import_module("underlay_volumes").STORE
    yield found
    del sys.modules["underlay_volumes"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine, storage: FakeBackend) -> Host:
    return machine.host()


@pytest.fixture
def base(machine: Machine, host: Host) -> BaseImage:
    return host.ensure(machine.raw_image())


def recorded(host: Host) -> list[tuple[str, str, str]]:
    store = host.config.caches["base"]
    return [(one.instance, one.name, one.backend) for one in records.volumes(store)]


def test_a_volume_lives_as_a_file_does(host: Host, base: BaseImage, machine: Machine, storage: FakeBackend) -> None:
    made = host.create_disk("web-1", base, backend="fake", size=GIB // 32)

    assert ("fake", "raw", GIB // 32, base.name) == (made.backend, made.format, made.size, made.base)
    assert [("web-1", "disk", "fake")] == recorded(host)
    assert [made] == host.disks()
    assert (
        made
        == host.disk("web-1")
        == host.disk("web-1", path=made.path)
        == host.create_disk("web-1", base, backend="fake", size=GIB // 32)
    )
    assert [] == list(machine.instances.iterdir())
    assert GIB // 16 == host.resize_disk("web-1", GIB // 16).size
    assert ("network", "fake", "raw") == (
        host.attachment("web-1").type,
        host.attachment("web-1").protocol,
        host.attachment("web-1").format,
    )
    assert "fake" in [traits.name for traits in host.backends()]
    host.remove_disk("web-1")
    assert ([], [], frozenset()) == (host.disks(), recorded(host), storage.names())
    with pytest.raises(DiskNotFound):
        host.disk("web-1")


def test_a_volume_is_recorded_before_it_appears(host: Host, base: BaseImage, storage: FakeBackend) -> None:
    storage.capacity = 0
    seen: list[list[tuple[str, str, str]]] = []
    room = storage._make_room

    def make_room(size: int) -> None:
        seen.append(recorded(host))
        room(size)

    storage._make_room = make_room  # type: ignore[method-assign]

    with pytest.raises(Exception, match="no room"):
        host.create_disk("web-1", base, backend="fake")

    assert [[("web-1", "disk", "fake")]] == seen
    assert [] == recorded(host)


def test_a_volume_that_a_guest_has_open_is_left_alone(host: Host, base: BaseImage, storage: FakeBackend) -> None:
    disk = host.create_disk("web-1", base, backend="fake")

    with storage.opened(disk):
        touches: list[Callable[[], object]] = [
            lambda: host.remove_disk("web-1", assume_closed=True),
            lambda: host.resize_disk("web-1", "1GiB", assume_closed=True),
            lambda: host.flatten_disk("web-1", assume_closed=True),
        ]
        for touch in touches:
            with pytest.raises(DiskInUse, match=str(disk.path)):
                touch()

    assert [disk] == host.disks()


def test_an_instance_has_one_disk_of_a_name_whichever_backend_has_it(host: Host, base: BaseImage) -> None:
    volume = host.create_disk("web-1", base, backend="fake")
    file = host.create_disk("web-2", base)

    with pytest.raises(DiskExists, match="of the fake backend"):
        host.create_disk("web-1", base, backend="qcow2")
    with pytest.raises(DiskExists, match=str(file.path)):
        host.create_disk("web-2", base, backend="fake")

    assert sorted([volume, file], key=lambda disk: disk.path) == host.disks()
    assert host.create_disk("web-1", base, backend="flat", name="disk.local") in host.disks()


def test_a_volume_that_went_away_behind_our_back_is_not_in_the_way(host: Host, base: BaseImage, storage: FakeBackend) -> None:
    storage.remove(host.create_disk("web-1", base, backend="fake"))

    assert [] == host.disks()
    with pytest.raises(DiskNotFound):
        host.disk("web-1")
    made = host.create_disk("web-1", base)

    assert ("qcow2", []) == (made.backend, recorded(host))


def test_a_storage_that_is_away_hides_nothing_and_loses_nothing(
    machine: Machine, base: BaseImage, storage: FakeBackend
) -> None:
    recorder = Recorder()
    host = machine.host(recorder)
    volume, file = host.create_disk("web-1", base, backend="fake"), host.create_disk("web-2", base)
    storage.is_away = True

    assert [file] == host.disks()
    assert str(volume.path) == recorder.wait_for_event("backend-unavailable").fields["path"]
    touches: list[Callable[[], object]] = [
        lambda: host.disk("web-1"),
        lambda: host.remove_disk("web-1"),
        lambda: host.create_disk("web-3", base, backend="fake"),
        lambda: host.create_disk("web-1", base, backend="qcow2"),
    ]
    for touch in touches:
        with pytest.raises(BackendUnavailable):
            touch()

    assert [("web-1", "disk", "fake")] == recorded(host)
    storage.is_away = False
    assert volume == host.disk("web-1")


def test_a_storage_that_is_away_is_asked_about_one_disk_only(machine: Machine, base: BaseImage, storage: FakeBackend) -> None:
    recorder = Recorder()
    host, asked = machine.host(recorder), list[DiskSpec]()
    made = [host.create_disk(f"web-{number}", base, backend="fake") for number in range(3)]
    describe, storage.is_away = storage.describe, True

    def listen(want: DiskSpec) -> InstanceDisk:
        asked.append(want)
        return describe(want)

    storage.describe = listen  # type: ignore[method-assign]

    assert [] == host.disks()

    told = {event.fields["path"] for event in recorder.events if event.code == "backend-unavailable"}
    assert (1, {str(disk.path) for disk in made}) == (len(asked), told)


def test_a_volume_needs_its_base_only_where_it_reads_from_it(machine: Machine, base: BaseImage, storage: FakeBackend) -> None:
    host, late = machine.host(), datetime.now(UTC) + timedelta(days=30)
    host.create_disk("web-1", base, backend="fake")
    [thick] = host.plan_prune(now=late).verdicts
    host.remove_disk("web-1")
    storage.traits = replace(storage.traits, overlays=True)
    host.create_disk("web-1", base, backend="fake")
    storage.is_away = True  # what is recorded keeps the base, whether anybody answers or not
    [thin] = host.plan_prune(now=late).verdicts
    storage.is_away, storage.traits = False, replace(storage.traits, overlays=False)

    assert (True, False) == (thick.removes, thin.removes)
    assert "recorded-base" in [reason.code for reason in thin.reasons]


def test_a_record_that_cannot_be_read_keeps_the_images(host: Host, base: BaseImage, machine: Machine) -> None:
    host.create_disk("web-1", base, backend="fake")
    [record] = (machine.base / ".underlay" / "volumes").iterdir()
    content = record.read_text()
    for spoiled in ("{", json.dumps(json.loads(content) | {"layout": 99}), "[]"):
        record.write_text(spoiled)
        with pytest.raises(StorageFailed, match=record.name):
            host.disk("web-1")
        [verdict] = host.plan_prune(now=datetime.now(UTC) + timedelta(days=30)).verdicts
        assert not verdict.removes


def test_a_disk_of_a_backend_that_is_not_installed_any_more_can_be_forgotten(
    machine: Machine, host: Host, base: BaseImage, storage: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = host.create_disk("web-1", base, backend="fake")
    with pytest.raises(DiskExists):
        host.forget_disk(disk.path)
    monkeypatch.undo()

    with pytest.raises(UnknownBackend):
        host.disk("web-1")
    assert [] == host.disks()
    host.forget_disk(disk.path)

    assert [] == recorded(host)
    assert "qcow2" == host.create_disk("web-1", base).backend


def test_no_path_is_asked_of_a_volume(host: Host, base: BaseImage, machine: Machine) -> None:
    with pytest.raises(InvalidName, match="a place of its own"):
        host.create_disk("web-1", base, backend="fake", path=machine.root / "disk")


def test_another_instances_volume_is_not_touched_by_its_path(host: Host, base: BaseImage) -> None:
    disk = host.create_disk("web-1", base, backend="fake")

    with pytest.raises(DiskNotFound, match="not a disk of web-2"):
        host.remove_disk("web-2", path=disk.path)


def test_a_volume_is_encrypted_with_a_key_that_nobody_sees(machine: Machine, storage: FakeBackend) -> None:
    ref, key = machine.raw_image(), machine.root / "key"
    key.write_text("geheimnis")

    made = machine.call("disk", "create", "web-1", "--image", ref, "--backend", "fake", "--key-file", key, "--json")
    refused = machine.call("disk", "create", "web-2", "--image", ref, "--key-file", key, "--json")
    missing = machine.call("disk", "create", "web-3", "--image", ref, "--key-file", machine.root / "none", "--json")

    assert (0, "unsupported", "config-error") == (made.status, refused.error["code"], missing.error["code"])
    assert "geheimnis" not in "".join(one.out + one.err for one in (made, refused, missing))
    assert not any(b"geheimnis" in path.read_bytes() for path in machine.base.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------------- clones, and where they fail


CONTENT = b"an image of the storage" * 1000


def cloning_host(machine: Machine, recorder: Recorder) -> tuple[Host, FakeSource]:
    image = FakeImage(CONTENT, id="image-1", disk_format="raw", locations=("https://elsewhere", "fake://images/image"))
    source = FakeSource({"fake:image": image})
    return Host.open(machine.config, observer=recorder, sources={"fake": source}), source


def test_an_image_that_the_storage_has_is_cloned_and_not_fetched(machine: Machine, storage: FakeBackend) -> None:
    host, source = cloning_host(machine, Recorder())
    storage.add_image("fake://images/image", CONTENT)

    disk = host.create_disk("web-1", "fake:image", backend="fake", size=MIB)

    assert (None, "fake://images/image", MIB) == (disk.base, disk.parent, disk.size)
    assert CONTENT.ljust(MIB, b"\0") == storage.guest_bytes(disk)
    assert (0, []) == (source.opened("fake:image"), host.images()[0])
    assert disk == host.create_disk("web-1", "fake:image", backend="fake", size=MIB) == host.disk("web-1")
    assert None is host.flatten_disk("web-1").parent


def test_an_image_that_lies_elsewhere_is_fetched_and_why_is_told(machine: Machine, storage: FakeBackend) -> None:
    recorder = Recorder()
    host, source = cloning_host(machine, recorder)

    disk = host.create_disk("web-1", "fake:image", backend="fake", size=MIB)

    assert (1, None) == (source.opened("fake:image"), disk.parent)
    told = recorder.wait_for_event("clone-refused")
    assert ("fake:image", "fake") == (told.fields["ref"], told.fields["backend"])
    assert "none of its locations" in told.detail


def test_a_clone_is_the_disk_that_is_made_from_the_fetched_image_too(machine: Machine, storage: FakeBackend) -> None:
    host, _ = cloning_host(machine, Recorder())
    storage.add_image("fake://images/image", CONTENT)
    cloned = host.create_disk("web-1", "fake:image", backend="fake")

    assert cloned == host.create_disk("web-1", host.ensure("fake:image"), backend="fake")


def test_a_snapshot_is_made_where_the_backend_can(host: Host, base: BaseImage) -> None:
    host.create_disk("web-1", base, backend="fake")
    host.create_disk("web-2", base)

    assert "fake://images/before" == host.snapshot_disk("web-1", "before")
    with pytest.raises(DiskExists):
        host.snapshot_disk("web-1", "before")
    with pytest.raises(Unsupported):
        host.snapshot_disk("web-2", "before")
    with pytest.raises(InvalidName):
        host.snapshot_disk("web-1", "../before")


# -------------------------------------------------------------------------------------------------------- who made a disk


@pytest.mark.parametrize("shared", [True, False])
def test_a_disk_that_another_maker_has_made_stays(
    host: Host, base: BaseImage, storage: FakeBackend, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    monkeypatch.setattr(storage, "traits", replace(storage.traits, shared_storage=shared))
    made = host.create_disk("web-1", base, backend="fake", maker="one")
    with storage.opened(made), pytest.raises(DiskNotFound, match="made by somebody else"):
        host.remove_disk("web-1", maker="another")

    assert frozenset({made.path.name}) == storage.names()
    # On a storage of this host alone its maker is on this host too, and has no other record of it.
    assert ([] if shared else [("web-1", "disk", "fake")]) == recorded(host)
    assert made == host.create_disk("web-1", base, backend="fake", maker="one")
    assert made == host.remove_disk("web-1", maker="one")
    assert (frozenset(), []) == (storage.names(), recorded(host))


def test_a_disk_that_does_not_say_who_made_it_goes_by_its_owner(host: Host, base: BaseImage, storage: FakeBackend) -> None:
    host.create_disk("web-1", base, backend="fake")
    host.remove_disk("web-1")
    assert (frozenset(), []) == (storage.names(), recorded(host))


def test_a_disk_that_another_makes_while_ours_is_looked_for_stays(host: Host, base: BaseImage, storage: FakeBackend) -> None:
    """Another host, which our lock does not reach."""
    ours = host.create_disk("web-1", base, backend="fake", maker="one")
    storage.remove(ours)
    describe = storage.describe

    def late(want: DiskSpec) -> InstanceDisk:
        try:
            return describe(want)
        except DiskNotFound:
            storage.create(base, replace(want, maker="another"))
            raise

    storage.describe = late  # type: ignore[method-assign]
    host.remove_disk("web-1", maker="one")
    storage.describe = describe  # type: ignore[method-assign]
    assert (frozenset({ours.path.name}), []) == (storage.names(), recorded(host))
