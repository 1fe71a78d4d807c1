"""The rbd backend on a real Ceph, beyond its contract: kills at each step, what is refused and why, and what it costs."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ceph_stage import (
    CONTENT,
    MIB,
    RbdStage,
    backend_of,
    base_image,
    cloneable,
    host_of,
    images,
    nothing,
    of_disk,
    pool_of,
    spec_at,
    spec_of,
)
from ceph_worker import Task, work

from underlay import Host, volumes
from underlay.contracts import MeasuresRoom, StorageRoom
from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskNotFound,
    DiskUnrecorded,
)
from underlay.model import Extraction, ImageRef, ImageVersion
from underlay.registry import open_backend
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]

PATIENCE = 60.0  # seconds

# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_pool_that_is_not_there_is_told(stage: RbdStage) -> None:
    with pytest.raises(BackendUnavailable, match="has no pool absent"):
        backend_of(stage.ceph, "absent").describe(spec_of(stage))


def told_room(stage: RbdStage) -> StorageRoom | None:
    try:
        return stage.backend.room()
    except BackendUnavailable as error:
        return None if "does not tell how large" in error.message else pytest.fail(error.message)


def test_a_pool_tells_how_large_it_is(stage: RbdStage) -> None:
    assert isinstance(stage.backend, MeasuresRoom)
    stage.ceph.start_manager()
    deadline, room = time.monotonic() + PATIENCE, told_room(stage)
    while room is None and time.monotonic() < deadline:
        time.sleep(0.5)  # a manager that has just begun knows nothing of the pools
        room = told_room(stage)
    assert room is not None
    assert 0 < room.free <= room.total
    with pytest.raises(BackendUnavailable, match="has no pool absent"):
        backend_of(stage.ceph, "absent").room()


def test_a_configuration_that_is_not_there_is_told(stage: RbdStage) -> None:
    with pytest.raises(BackendUnavailable, match=r"absent\.conf"):
        backend_of(stage.ceph, ceph_conf=Path("/absent.conf")).describe(spec_of(stage))


def test_a_user_without_a_key_is_told(stage: RbdStage) -> None:
    with pytest.raises(BackendUnavailable, match=r"client\.stranger"):
        backend_of(stage.ceph, user="stranger").describe(spec_of(stage))


def test_a_user_who_may_only_read_is_told(stage: RbdStage, tmp_path: Path) -> None:
    stage.ceph.add_user("reader", mon="profile rbd", osd="profile rbd-read-only")
    backend = backend_of(stage.ceph, user="reader")
    made = stage.backend.create(base_image(tmp_path, CONTENT), spec_of(stage))

    assert made == backend.describe(spec_at(made))
    with pytest.raises(BackendUnavailable, match=r"refuses .* to client\.reader"):
        backend.create(base_image(tmp_path, CONTENT), spec_of(stage))


def test_the_usual_capabilities_are_enough(stage: RbdStage, tmp_path: Path) -> None:
    stage.ceph.add_user("nova", mon="profile rbd", osd="profile rbd pool=rbd, profile rbd-read-only pool=images")
    backend, spec = backend_of(stage.ceph, user="nova"), spec_of(stage)
    clone = backend.clone(stage.cloneable(CONTENT), spec)
    attachment = backend.attachment(backend.resize(clone, 16 * MIB))

    assert ("network", "rbd", f"rbd/{spec.path.name}", "raw", "nova") == (
        attachment.type,
        attachment.protocol,
        attachment.source,
        attachment.format,
        attachment.user,
    )
    assert [("127.0.0.1", stage.ceph.port)] == list(attachment.servers)
    backend.remove(backend.flatten(clone))
    assert set() == of_disk(stage, spec)


def test_an_image_that_is_not_ours_is_left_alone(stage: RbdStage, tmp_path: Path) -> None:
    spec = spec_of(stage)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, spec.path.name, 8 * MIB)

    with pytest.raises(DiskExists, match="no disk of ours"):
        stage.backend.create(base_image(tmp_path, CONTENT), spec)
    found = stage.backend.describe(spec)
    assert (None, 8 * MIB) == (found.format, found.size)
    touches: list[Callable[[], object]] = [
        lambda: stage.backend.resize(found, 16 * MIB),
        lambda: stage.backend.attachment(found),
        lambda: stage.backend.snapshot(found, "kept"),
        lambda: stage.backend.remove(found),
    ]
    for touch in touches:
        with pytest.raises(DiskUnrecorded):
            touch()
    assert found == stage.backend.describe(spec)


def test_another_disk_under_the_name_is_not_removed(stage: RbdStage) -> None:
    disk, spec = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage)), spec_of(stage)
    stage.ceph.rbd("rename", f"rbd/{disk.path.name}", f"rbd/{spec.path.name}")

    with pytest.raises(DiskExists, match=f"another disk: disk of {disk.instance}"):
        stage.backend.remove(replace(disk, instance=spec.instance, path=spec.path))

    assert {spec.path.name} == of_disk(stage, spec)


def test_an_image_whose_parent_is_gone_is_there_all_the_same(stage: RbdStage, tmp_path: Path) -> None:
    spec, pool = spec_of(stage), stage.ceph.make_pool(f"gone-{uuid4().hex[:8]}")
    version = cloneable(stage.ceph, pool, CONTENT)
    stage.ceph.rbd("clone", f"{pool}/{version.id}@snap", f"rbd/{spec.path.name}")
    stage.ceph.run("ceph", "osd", "pool", "delete", pool, pool, "--yes-i-really-really-mean-it")

    assert stage.backend.exists(spec)
    touches: list[Callable[[], object]] = [
        lambda: stage.backend.create(base_image(tmp_path, CONTENT), spec),
        lambda: stage.backend.describe(spec),
        lambda: stage.backend.remove(nothing(spec)),
        lambda: stage.backend.discard_snapshot(f"rbd://{stage.ceph.fsid}/rbd/{spec.path.name}/snap"),
    ]
    for touch in touches:
        with pytest.raises(DiskExists, match="what it reads from is gone"):
            touch()
    assert {spec.path.name} == of_disk(stage, spec)


def test_what_the_trash_has_under_the_name_stays_there(stage: RbdStage, tmp_path: Path) -> None:
    spec = spec_of(stage)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, spec.path.name, 8 * MIB)
        rbd.RBD().trash_move(pool, spec.path.name, 0)

    stage.backend.remove(nothing(spec))
    stage.backend.remove(stage.backend.create(base_image(tmp_path, CONTENT), spec))

    assert {spec.path.name} == of_disk(stage, spec)


# ----------------------------------------------------------------------------------------------------------------- cost


def test_an_import_leaves_out_what_is_zero(stage: RbdStage, tmp_path: Path) -> None:
    disk = stage.backend.create(base_image(tmp_path, os.urandom(MIB) + bytes(31 * MIB)), spec_of(stage, size=128 * MIB))

    assert 4 * MIB == disk.allocated  # one object
    exported = stage.ceph.rbd("export", f"rbd/{disk.path.name}", "-", "--no-progress")
    assert (128 * MIB, b"") == (len(exported), exported[MIB:].lstrip(b"\0"))


def test_what_a_clone_costs_does_not_grow_with_the_image(stage: RbdStage) -> None:
    requests = []
    for size in (64 << 20, 1 << 40):
        version, before = cloneable(stage.ceph, "images", CONTENT, size=size), stage.ceph.requests()
        made = stage.backend.clone(version, spec_of(stage, size=None))
        requests.append(stage.ceph.requests() - before)
        assert (size, 0) == (made.size, made.allocated)
        stage.ceph.rbd("rm", "--no-progress", f"rbd/{made.path.name}")

    small, large = requests
    assert large < small * 1.2, requests  # there may be a heartbeat among them; the size is 16384 times as large


def test_what_a_spoiled_map_of_objects_says_is_not_believed(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        with rbd.Image(pool, disk.path.name) as image:
            map_of_objects = f"rbd_object_map.{image.id()}"
        pool.remove_object(map_of_objects)
    stage.write(disk, 0, b"x")

    assert (0, 8 * MIB) == (disk.allocated, stage.backend.describe(spec_at(disk)).allocated)


def test_a_large_disk_with_next_to_nothing_in_it_is_written_out(stage: RbdStage, tmp_path: Path) -> None:
    hasty = stage.backend_on("node1", connect_timeout=0.5, operation_timeout=0.25)  # a second without a sign, and it gives up
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage, size=32 << 30))

    hasty.extract(disk, tmp_path / "written", Extraction(format="raw"))

    written = (tmp_path / "written").stat()
    assert (32 << 30, True) == (written.st_size, written.st_blocks * 512 < 16 * MIB)


def test_the_pools_that_are_configured_are_used(stage: RbdStage) -> None:
    backend = stage.backend_on("node1", data_pool="other", snapshot_pool="images")
    disk = backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    name = f"kept-{disk.instance}"

    location = backend.snapshot(disk, name)

    assert f"rbd://{stage.ceph.fsid}/images/{name}/snap" == location
    for image in (f"rbd/{disk.path.name}", f"images/{name}"):
        assert "other" == json.loads(stage.ceph.rbd("info", "--format=json", image))["data_pool"]
    backend.remove(disk)
    backend.discard_snapshot(location)
    assert not any(name in left for left in images(stage.ceph, "images"))


# ----------------------------------------------------------------------------------------------------------- the host


class CloudSource(FakeSource):
    """A source that tells where its images lie in a Ceph, as Glance does when it is configured to."""

    locations: tuple[str, ...] = ()

    def describe(self, ref: ImageRef, *, known: Any = ()) -> ImageVersion:
        return replace(super().describe(ref, known=known), locations=self.locations)

    def open(self, version: ImageVersion, *, offset: int = 0) -> Any:
        return super().open(replace(version, locations=()), offset=offset)


def cloud_host(stage: RbdStage, directory: Path, source: CloudSource, observer: Recorder) -> Host:
    options = f'[disks.rbd]\nceph_conf = "{stage.ceph.conf}"\nconnect_timeout = "2s"\noperation_timeout = "2s"\n'
    host = host_of(directory, {}, options)
    return Host.open(host.config, sources={"fake": source}, observer=observer)


def test_a_host_clones_what_the_ceph_has_and_fetches_nothing(stage: RbdStage, tmp_path: Path) -> None:
    version, observer = stage.cloneable(CONTENT), Recorder()
    source = CloudSource({"fake:image": FakeImage(CONTENT, id=version.id, disk_format="raw")})
    source.locations = version.locations
    host, instance = cloud_host(stage, tmp_path, source, observer), f"vm-{uuid4().hex[:12]}"

    disk = host.create_disk(instance, "fake:image", size="1GiB", backend="rbd")

    assert (0, [], None) == (source.opened("fake:image"), host.images()[0], disk.base)
    assert disk.parent == f"rbd:{version.locations[1].split('/', 3)[3].replace('/snap', '@snap')}"
    assert [disk] == host.disks()
    assert [] == [event for event in observer.events if event.code == "clone-refused"]
    assert 2 << 30 == host.resize_disk(instance, "2GiB").size
    target = tmp_path / "extracted.qcow2"
    host.extract_disk(instance, target)
    location = host.snapshot_disk(instance, f"of-{instance}")
    assert location == f"rbd://{stage.ceph.fsid}/rbd/of-{instance}/snap"
    assert host.flatten_disk(instance).parent is None
    host.remove_disk(instance)
    assert [] == host.disks()
    stage.backend.discard_snapshot(location)
    assert not any(instance in name for name in stage.left())


def test_a_host_says_why_it_fetches_and_imports(stage: RbdStage, tmp_path: Path) -> None:
    observer, source = Recorder(), CloudSource({"fake:image": FakeImage(CONTENT, disk_format="raw")})
    source.locations = ("rbd://00000000-0000-0000-0000-000000000000/images/a/snap",)
    host, instance = cloud_host(stage, tmp_path, source, observer), f"vm-{uuid4().hex[:12]}"

    disk = host.create_disk(instance, "fake:image", size=8 * MIB, backend="rbd")

    (refused,) = [event for event in observer.events if event.code == "clone-refused"]
    assert "another Ceph" in refused.detail
    (image,) = host.images()[0]
    assert (image.name, None) == (disk.base, disk.parent)
    assert CONTENT == stage.read(disk)[: len(CONTENT)]
    host.remove_disk(instance)


def test_a_disk_whose_removal_was_killed_is_forgotten_by_removing_it_again(stage: RbdStage, tmp_path: Path) -> None:
    source = CloudSource({"fake:image": FakeImage(CONTENT, disk_format="raw")})
    host, instance = cloud_host(stage, tmp_path, source, Recorder()), f"vm-{uuid4().hex[:12]}"
    disk = host.create_disk(instance, "fake:image", backend="rbd")
    with pool_of(stage.ceph, stage.pool) as (rbd, pool), rbd.Image(pool, disk.path.name) as image:
        image.metadata_set("underlay.going", json.dumps({"host": host.config.host, "address": "", "made_at": 0.0}))

    with pytest.raises(DiskNotFound):
        host.remove_disk(instance)

    assert set() == of_disk(stage, spec_at(disk))


def test_a_disk_whose_making_was_killed_is_forgotten_by_removing_it(stage: RbdStage, tmp_path: Path) -> None:
    host, spec = cloud_host(stage, tmp_path, CloudSource({"fake:image": FakeImage(CONTENT)}), Recorder()), spec_of(stage)
    (store,) = host.config.caches.values()
    task = Task(open_backend("rbd", host.config.disks), "create", (host.ensure("fake:image"), spec), before="rename")
    with volumes.recorded(host.config, store, stage.backend, spec, base=None):
        assert -signal.SIGKILL == work(task).returncode
        assert 2 == len(of_disk(stage, spec)), "an image and a claim"

        with pytest.raises(DiskNotFound):
            host.remove_disk(spec.instance)

    assert (set(), None) == (
        of_disk(stage, spec),
        volumes.find(host.config, volumes.called(host.config, spec.instance, "disk")),
    )


def test_a_record_of_what_is_no_disk_of_ours_removes_nothing(stage: RbdStage, tmp_path: Path) -> None:
    source = CloudSource({"fake:image": FakeImage(CONTENT, disk_format="raw")})
    host, spec = cloud_host(stage, tmp_path, source, Recorder()), spec_of(stage)
    (store,) = host.config.caches.values()
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, spec.path.name, 8 * MIB)
    with volumes.recorded(host.config, store, stage.backend, spec, base=None):
        assert [] == host.disks(), "who is killed now leaves a record of another's disk"
    stage.ceph.rbd("rename", f"rbd/{spec.path.name}", "rbd/elsewhere")
    host.create_disk(spec.instance, "fake:image", backend="rbd")
    stage.ceph.rbd("rm", "--no-progress", f"rbd/{spec.path.name}")
    stage.ceph.rbd("rename", "rbd/elsewhere", f"rbd/{spec.path.name}")  # as when the instance came back by Nova

    with pytest.raises(DiskUnrecorded):
        host.remove_disk(spec.instance)
    host.forget_disk(spec.path)

    assert ([], {spec.path.name}) == (host.disks(), of_disk(stage, spec))
