"""The rbd backend on a real Ceph, beyond its contract: kills at each step, what is refused and why, and what it costs."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
from ceph_stage import RbdStage, backend_of, claims, cloneable, images, pool_of
from ceph_worker import Task

from underlay import Host
from underlay.config import parse_config
from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskUnrecorded,
    InsufficientSpace,
    Unsupported,
)
from underlay.model import BaseImage, DiskSpec, ImageRef, ImageVersion, InstanceDisk, Signature
from underlay.refs import parse_ref
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]

MIB = 1 << 20
CONTENT = os.urandom(MIB) + bytes(4 * MIB) + os.urandom(MIB)


def base_image(directory: Path, content: bytes = CONTENT) -> BaseImage:
    return host_of(directory, {"fake:image": FakeImage(content)}).ensure("fake:image")


def host_of(directory: Path, of: dict[str, FakeImage], more: str = "", observer: Recorder | None = None) -> Host:
    (directory / "cache").mkdir(exist_ok=True)
    (directory / "instances").mkdir(exist_ok=True)
    text = f'[caches.one]\nkind = "base"\npath = "{directory}/cache"\n[instances]\npath = "{directory}/instances"\n{more}'
    return Host.open(parse_config(text, origin=Path("test")), sources={"fake": FakeSource(of)}, observer=observer)


def spec_of(stage: RbdStage, *, size: int | None = 8 * MIB) -> DiskSpec:
    instance = f"vm-{uuid4().hex[:12]}"
    place = stage.backend.place(instance, "disk")
    assert place is not None
    return DiskSpec(instance=instance, name="disk", path=place, size=size)


def work(task: Task) -> subprocess.CompletedProcess[bytes]:
    worker = Path(__file__).with_name("ceph_worker.py")
    return subprocess.run([sys.executable, worker], input=pickle.dumps(task), capture_output=True, check=False, timeout=120)


def of_disk(stage: RbdStage, spec: DiskSpec) -> set[str]:
    return {name for name in stage.left() if spec.instance in name}


# -------------------------------------------------------------------------------------------------- killed at each step


def killed_before_each_step(begin: Callable[[], Task], after: Callable[[Task], None], *, stride: int = 1) -> None:
    for step in count(0, stride):
        task = replace(begin(), before=step)
        done = work(task)
        if done.returncode == 0:
            assert step >= 5, "the steps are not counted"
            return
        assert -signal.SIGKILL == done.returncode, done.stderr.decode()
        after(task)


def test_who_is_killed_while_importing_leaves_a_whole_disk_or_none(stage: RbdStage, tmp_path: Path) -> None:
    base = base_image(tmp_path)

    def after(task: Task) -> None:
        spec = task.arguments[1]
        with suppress(DiskNotFound):
            assert CONTENT == stage.read(stage.backend.describe(spec))[: len(CONTENT)]
        made = stage.backend.create(base, spec)
        assert CONTENT == stage.read(made)[: len(CONTENT)]
        assert {spec.path.name} == of_disk(stage, spec)
        stage.backend.remove(made)
        assert set() == of_disk(stage, spec)

    killed_before_each_step(lambda: Task(stage.backend, "create", (base, spec_of(stage))), after)


def test_who_is_killed_while_cloning_leaves_a_whole_disk_or_none(stage: RbdStage) -> None:
    version = stage.cloneable(CONTENT)

    def after(task: Task) -> None:
        spec = task.arguments[1]
        made = stage.backend.clone(version, spec)
        assert (8 * MIB, CONTENT) == (made.size, stage.read(made)[: len(CONTENT)])
        assert {spec.path.name} == of_disk(stage, spec)
        stage.backend.remove(made)
        assert set() == of_disk(stage, spec)

    killed_before_each_step(lambda: Task(stage.backend, "clone", (version, spec_of(stage))), after)


def test_who_is_killed_while_removing_leaves_a_whole_disk_or_none(stage: RbdStage) -> None:
    version = stage.cloneable(CONTENT)

    def after(task: Task) -> None:
        (disk,) = task.arguments
        with suppress(DiskNotFound):
            assert CONTENT == stage.read(stage.backend.describe(spec_at(disk)))[: len(CONTENT)]
        stage.backend.remove(disk)
        assert set() == of_disk(stage, spec_at(disk))

    def begin() -> Task:
        return Task(stage.backend, "remove", (stage.backend.clone(version, spec_of(stage)),))

    killed_before_each_step(begin, after)


def test_who_is_killed_while_making_a_snapshot_leaves_nothing_that_stays(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    names = (f"snap-{disk.instance}-{number}" for number in count())

    def after(task: Task) -> None:
        name = task.arguments[1]
        try:
            location = stage.backend.snapshot(disk, name)
        except DiskExists:
            location = f"rbd://{stage.ceph.fsid}/{stage.pool}/{name}/snap"
        clone = stage.backend.clone(replace(stage.cloneable(b"x"), locations=(location,)), spec_of(stage))
        assert CONTENT == stage.read(clone)[: len(CONTENT)]
        stage.backend.remove(clone)
        stage.backend.discard_snapshot(location)
        assert {disk.path.name} == of_disk(stage, spec_at(disk))

    killed_before_each_step(lambda: Task(stage.backend, "snapshot", (disk, next(names))), after, stride=3)


def spec_at(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)


@pytest.mark.parametrize("known_as", ["the old name", "the new name"])
def test_a_renaming_that_stopped_halfway_is_brought_to_its_end(stage: RbdStage, tmp_path: Path, known_as: str) -> None:
    base, spec = base_image(tmp_path), spec_of(stage)
    made = stage.backend.create(base, spec)
    temporary, image = f".{spec.path.name}.0123", spec.path.name
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        if known_as == "the old name":  # before the directory was changed
            rbd.RBD().rename(pool, image, temporary)
            pool.write_full(f"rbd_id.{image}", pool.read(f"rbd_id.{temporary}"))
        else:  # before the old name was removed
            pool.write_full(f"rbd_id.{temporary}", pool.read(f"rbd_id.{image}"))
        claim(pool, f"{image}/{temporary}", host=stage.backend.host)

    assert CONTENT == stage.read(stage.backend.describe(spec))[: len(CONTENT)]
    again = stage.backend.create(base, spec)

    assert made == again
    assert CONTENT == stage.read(again)[: len(CONTENT)]
    assert {image} == of_disk(stage, spec)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        assert not any(temporary in one.key for one in pool.list_objects())


def claim(pool: Any, key: str, *, host: str, made_at: float | None = None) -> None:
    rados = import_module("rados")
    value = json.dumps({"host": host, "address": "127.0.0.1:0/1", "made_at": made_at or time.time()}).encode()
    with rados.WriteOpCtx() as operation:
        pool.set_omap(operation, (key,), (value,))
        pool.operate_write_op(operation, "underlay.making")


def test_what_another_host_makes_is_left_alone_for_a_day(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path), spec_of(stage)
    image, young, old = spec.path.name, f".{spec.path.name}.young", f".{spec.path.name}.old"
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        for name, age in ((young, 0), (old, 90000)):
            rbd.RBD().create(pool, name, MIB)
            claim(pool, f"{image}/{name}", host="another", made_at=time.time() - age)

    stage.backend.create(base, spec)

    assert {image, young, f"{image}/{young}"} == of_disk(stage, spec)
    with pool_of(stage.ceph, stage.pool) as (_, pool):
        claim(pool, f"{image}/{young}", host="another", made_at=1.0)
    stage.backend.remove(stage.backend.describe(spec))
    assert set() == of_disk(stage, spec)


def test_the_name_of_a_half_removed_image_is_free_again(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path), spec_of(stage)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, spec.path.name, MIB)
        with rbd.Image(pool, spec.path.name) as image:
            header = f"rbd_header.{image.id()}"
        pool.remove_object(header)

    assert CONTENT == stage.read(stage.backend.create(base, spec))[: len(CONTENT)]


# ------------------------------------------------------------------------------------------------ a Ceph that goes away


@pytest.mark.parametrize("daemon", ["osd.0", "mon.a"])
def test_a_ceph_that_goes_in_the_middle_is_told_in_time_and_nothing_is_left(
    stage: RbdStage, tmp_path: Path, daemon: str
) -> None:
    base = base_image(tmp_path, os.urandom(24 * MIB))
    steps = int(work(Task(stage.backend, "create", (base, spec_of(stage, size=None)))).stdout)
    for step in range(1, steps, 3):
        spec, started = spec_of(stage, size=None), time.monotonic()
        task = Task(stage.backend, "create", (base, spec), before=step, halts=stage.ceph.pids[daemon])
        try:
            done = work(task)
        finally:
            os.kill(stage.ceph.pids[daemon], signal.SIGCONT)
        assert time.monotonic() - started < 30
        if daemon == "osd.0":
            assert b"BackendUnavailable" in done.stderr or done.returncode == 0, done.stderr.decode()
        made = stage.backend.create(base, spec)
        assert base.path.read_bytes() == stage.read(made)
        stage.backend.remove(made)
        assert set() == of_disk(stage, spec)


def test_the_error_says_what_does_not_answer(stage: RbdStage) -> None:
    with stage.ceph.halted(), pytest.raises(BackendUnavailable, match="does not answer") as told:
        stage.backend.describe(spec_of(stage))

    assert str(stage.ceph.conf) in told.value.message
    assert "ceph -s" in str(told.value.hint)


def test_there_is_no_room_in_a_pool_over_its_quota(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path), spec_of(stage)
    kept = stage.backend.create(base, spec_of(stage))
    version = stage.cloneable(CONTENT)
    with stage.ceph.without_room(stage.pool):
        with pytest.raises(InsufficientSpace, match="pool of image rbd/"):
            stage.backend.create(base, spec)
        with pytest.raises(InsufficientSpace, match="pool of image rbd/"):
            stage.backend.clone(version, spec)
        stage.backend.remove(kept)  # which is how room is made
        with pytest.raises(DiskNotFound):
            stage.backend.describe(spec_at(kept))

    assert set() == of_disk(stage, spec)


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_pool_that_is_not_there_is_told(stage: RbdStage) -> None:
    with pytest.raises(BackendUnavailable, match="has no pool absent"):
        backend_of(stage.ceph, "absent").describe(spec_of(stage))


def test_a_configuration_that_is_not_there_is_told(stage: RbdStage) -> None:
    with pytest.raises(BackendUnavailable, match=r"absent\.conf"):
        backend_of(stage.ceph, ceph_conf=Path("/absent.conf")).describe(spec_of(stage))


def test_a_user_without_a_key_is_told(stage: RbdStage) -> None:
    with pytest.raises(BackendUnavailable, match=r"client\.stranger"):
        backend_of(stage.ceph, user="stranger").describe(spec_of(stage))


def test_a_user_who_may_only_read_is_told(stage: RbdStage, tmp_path: Path) -> None:
    stage.ceph.add_user("reader", mon="profile rbd", osd="profile rbd-read-only")
    backend = backend_of(stage.ceph, user="reader")
    made = stage.backend.create(base_image(tmp_path), spec_of(stage))

    assert made == backend.describe(spec_at(made))
    with pytest.raises(BackendUnavailable, match=r"refuses .* to client\.reader"):
        backend.create(base_image(tmp_path), spec_of(stage))


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
        stage.backend.create(base_image(tmp_path), spec)
    found = stage.backend.describe(spec)
    assert (None, 8 * MIB) == (found.format, found.size)
    for touch in (lambda: stage.backend.resize(found, 16 * MIB), lambda: stage.backend.attachment(found)):
        with pytest.raises(DiskUnrecorded):
            touch()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"disk_format": "qcow2"}, "its format is qcow2"),
        ({"disk_format": None}, "not known"),
        ({"locations": ()}, "names no location"),
        ({"locations": ("rbd://00000000/images/a/snap",)}, "another Ceph"),
        ({"locations": ("rbd://FSID/images/absent/snap",)}, "there is no image images/absent@snap"),
        ({"locations": ("rbd://FSID/absent/a/snap",)}, "no pool absent"),
        ({"locations": ("https://user:password@example.org/",)}, "no rbd://"),
        ({"signature": Signature(value=b"", algorithm="sha256", key_type="RSA-PSS", certificate=b"", signer="")}, "signature"),
    ],
)
def test_why_an_image_is_not_cloned_is_said(stage: RbdStage, change: dict[str, Any], why: str) -> None:
    locations = tuple(url.replace("FSID", stage.ceph.fsid) for url in change.get("locations", ()))
    version = replace(stage.cloneable(CONTENT), **({**change, "locations": locations} if "locations" in change else change))

    with pytest.raises(Unsupported, match=why) as told:
        stage.backend.clone(version, spec_of(stage))

    assert "password" not in f"{told.value} {told.value.hint}"


def test_a_pool_that_may_not_be_read_is_a_reason(stage: RbdStage) -> None:
    stage.ceph.add_user("narrow", mon="profile rbd", osd="profile rbd pool=rbd")

    with pytest.raises(Unsupported, match=r"client\.narrow"):
        backend_of(stage.ceph, user="narrow").clone(stage.cloneable(CONTENT), spec_of(stage))


def test_a_disk_with_snapshots_of_others_stays(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    stage.ceph.rbd("snap", "create", f"rbd/{disk.path.name}@mine")

    with pytest.raises(DiskInUse, match="mine"):
        stage.backend.remove(disk)

    assert disk == stage.backend.describe(spec_at(disk))
    stage.ceph.rbd("snap", "purge", f"rbd/{disk.path.name}", "--no-progress")
    stage.backend.remove(disk)


def test_a_disk_that_somebody_has_open_stays(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))

    with stage.opened(disk), pytest.raises(DiskInUse, match="is open"):
        stage.backend.remove(disk)

    assert disk == stage.backend.describe(spec_at(disk))


def test_a_child_in_the_trash_holds_a_snapshot_no_longer_than_it_is_kept_there(stage: RbdStage, tmp_path: Path) -> None:
    disk = stage.backend.create(base_image(tmp_path), spec_of(stage))
    location = stage.backend.snapshot(disk, f"snap-{disk.instance}")
    child = stage.backend.clone(replace(stage.cloneable(b"x"), locations=(location,)), spec_of(stage))
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().trash_move(pool, child.path.name, 3600)
        with pytest.raises(DiskInUse, match=child.path.name):
            stage.backend.discard_snapshot(location)
        (trashed,) = rbd.RBD().trash_list(pool)
        rbd.RBD().trash_restore(pool, trashed["id"], child.path.name)
        rbd.RBD().trash_move(pool, child.path.name, 0)

    stage.backend.discard_snapshot(location)

    stage.backend.remove(disk)
    assert set() == of_disk(stage, spec_at(disk)) | of_disk(stage, spec_at(child))


def test_only_snapshots_that_it_made_are_discarded(stage: RbdStage) -> None:
    (_, location) = stage.cloneable(CONTENT).locations

    with pytest.raises(Unsupported, match="no snapshot that it made"):
        stage.backend.discard_snapshot(location)


# ----------------------------------------------------------------------------------------------------------------- cost


def test_an_import_leaves_out_what_is_zero(stage: RbdStage, tmp_path: Path) -> None:
    disk = stage.backend.create(base_image(tmp_path, os.urandom(MIB) + bytes(63 * MIB)), spec_of(stage, size=1 << 30))

    assert 4 * MIB == disk.allocated  # one object
    exported = stage.ceph.rbd("export", f"rbd/{disk.path.name}", "-", "--no-progress")
    assert (1 << 30, b"") == (len(exported), exported[MIB:].lstrip(b"\0"))


def test_what_a_clone_costs_does_not_grow_with_the_image(stage: RbdStage) -> None:
    sizes = (64 << 20, 4 << 30)
    versions = {size: cloneable(stage.ceph, "images", CONTENT, size=size) for size in sizes}
    took: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(5):
        for size, version in versions.items():
            started = time.monotonic()
            made = stage.backend.clone(version, spec_of(stage, size=None))
            took[size].append(time.monotonic() - started)
            assert (size, 0) == (made.size, made.allocated)
            stage.backend.remove(made)

    small, large = (median(took[size]) for size in sizes)
    assert large < 4 * small, took  # 64 times the size


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


def test_a_disk_whose_making_was_killed_is_forgotten_by_removing_it(stage: RbdStage, tmp_path: Path) -> None:
    source = CloudSource({"fake:image": FakeImage(CONTENT, disk_format="raw")})
    host, instance = cloud_host(stage, tmp_path, source, Recorder()), f"vm-{uuid4().hex[:12]}"
    disk = host.create_disk(instance, "fake:image", backend="rbd")
    with pool_of(stage.ceph, stage.pool) as (rbd, pool), rbd.Image(pool, disk.path.name) as image:
        image.metadata_set("underlay.going", json.dumps({"host": host.config.host, "address": "", "made_at": 0.0}))

    with pytest.raises(DiskNotFound):
        host.remove_disk(instance)

    assert set() == of_disk(stage, spec_at(disk))
    assert [] == [name for name in images(stage.ceph, "images") if instance in name]
    with pool_of(stage.ceph, stage.pool) as (_, pool):
        assert [] == [key for key in claims(pool) if instance in key]
    assert parse_ref("fake:image").canonical == "fake:image"
