"""The lvm backend on a real lvm2, beyond its contract: kills at each step, old bytes, what is refused and what goes last."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from uuid import uuid4

import pytest
from lvm_stage import EXTENT, MIB, Lvm, LvmStage, call

from underlay import Host
from underlay.config import parse_config
from underlay.contracts import MeasuresRoom
from underlay.disks.lvm import changes, content, crypt, names
from underlay.disks.lvm.commands import Group
from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskUnrecorded,
    InsufficientSpace,
    Unsupported,
)
from underlay.model import BaseImage, DiskSpec, Extraction, InstanceDisk
from underlay.run import run_to_end
from underlay.testing.fakes import FakeImage, FakeSource
from underlay.values import replace

pytest_plugins = ["lvm_fixtures"]
pytestmark = [pytest.mark.component("microvm"), pytest.mark.component("qemu-img")]

CONTENT = os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB // 2)
OLD = b"\xaa"


def host_of(directory: Path, images: dict[str, FakeImage], options: str = "") -> Host:
    (directory / "cache").mkdir(exist_ok=True)
    (directory / "instances").mkdir(exist_ok=True)
    text = f'[caches.one]\nkind = "base"\npath = "{directory}/cache"\n[instances]\npath = "{directory}/instances"\n{options}'
    return Host.open(parse_config(text, origin=Path("test")), sources={"fake": FakeSource(images)})


@pytest.fixture
def base(tmp_path: Path) -> BaseImage:
    return host_of(tmp_path, {"fake:image": FakeImage(CONTENT)}).ensure("fake:image")


def spec_of(stage: LvmStage, *, size: int | None = 6 * MIB, key: bytes | None = None) -> DiskSpec:
    instance = f"vm-{uuid4().hex[:12]}"
    place = stage.backend.place(instance, "disk")
    assert place is not None
    return DiskSpec(instance=instance, name="disk", path=place, size=size, key=key)


def spec_at(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)


def expect_content(stage: LvmStage, disk: InstanceDisk) -> None:
    found = stage.read(disk)
    assert (disk.size, CONTENT, b"") == (len(found), found[: len(CONTENT)], found[len(CONTENT) :].lstrip(b"\0"))


# ---------------------------------------------------------------------------------------------------- killed at each step


def killed_before(step: int, work: Callable[[], object]) -> None:
    """Have a process begin some work, and kill it before it runs its nth program, counted from 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child does nothing but the work
        pid = os.fork()
    if pid == 0:
        steps = count()

        def see(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code is run_to_end.__code__ and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(see)
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it came to an end before it was killed"


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        pytest.param("thick", 2, id="filled, without its name"),
        pytest.param("thick-snapshot", 2, id="the image's volume filled, not whole"),
        pytest.param("thick-snapshot", 4, id="the image's volume whole, without a snapshot"),
        pytest.param("snapshot", 5, id="a snapshot, without its size"),
    ],
    indirect=["stage"],
)
def test_who_is_killed_while_a_disk_comes_leaves_nothing_that_stays(stage: LvmStage, base: BaseImage, step: int) -> None:
    spec = spec_of(stage)
    killed_before(step, lambda: stage.backend.create(base, spec))
    assert frozenset() != stage.left(), "the killed process had not begun"

    with pytest.raises(DiskNotFound):
        stage.backend.describe(spec)
    made = stage.backend.create(base, spec)

    expect_content(stage, made)
    stage.backend.remove(made)
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["thick-snapshot"], indirect=True)
def test_who_is_killed_while_a_snapshot_becomes_a_volume_of_its_own_leaves_the_disk(stage: LvmStage, base: BaseImage) -> None:
    stays = stage.backend.create(base, spec_of(stage))  # so that the image's volume does
    before = stage.left()
    for step in (2, 4):  # filled; whole. What lies behind these is the next test's
        disk = stage.backend.create(base, spec_of(stage))
        killed_before(step, partial(stage.backend.flatten, disk))
        assert before | {disk.path.name} != stage.left(), "the killed process had not begun"

        found = stage.backend.describe(spec_at(disk))
        expect_content(stage, found)
        flattened = stage.backend.flatten(found)

        assert flattened.parent is None
        expect_content(stage, flattened)
        stage.backend.remove(flattened)
        assert before == stage.left()
    stage.backend.remove(stays)
    assert frozenset() == stage.left()


def interrupt_before(step: int, work: Callable[[], object]) -> None:
    """Interrupt some work, as Ctrl-C does, before it runs its nth program, counted from 0."""
    steps = count()

    def see(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is run_to_end.__code__ and next(steps) == step:
            raise KeyboardInterrupt

    sys.setprofile(see)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("stage", ["thick-snapshot"], indirect=True)
def test_a_copy_of_what_a_guest_wrote_is_cleared_when_it_is_not_taken(stage: LvmStage, base: BaseImage) -> None:
    stage.volume_clear = "zero"
    disk = stage.backend.create(base, spec_of(stage))
    secret = os.urandom(4096)
    stage.write(disk, 0, secret)
    before, extents = stage.left(), stage.lvm.next_extents(6)
    assert secret not in volume_over(stage.lvm, extents)

    interrupt_before(2, lambda: stage.backend.flatten(disk))  # the copy is filled, and not yet whole

    assert before == stage.left()
    assert bytes(6 * EXTENT) == volume_over(stage.lvm, extents)
    assert secret == stage.read(disk)[:4096]
    stage.backend.remove(disk)


@pytest.mark.parametrize("stage", ["thick-snapshot"], indirect=True)
def test_what_somebody_put_in_a_killed_disks_place_is_left_alone(stage: LvmStage, base: BaseImage) -> None:
    disk = stage.backend.create(base, spec_of(stage))
    killed_before(5, lambda: stage.backend.flatten(disk))  # the snapshot gone, and the new volume without its name
    call("lvcreate", "-q", "-y", "-n", disk.path.name, "-L", "1m", stage.lvm.group)

    for touch in (lambda: stage.backend.create(base, spec_at(disk)), lambda: stage.backend.remove(disk)):
        with pytest.raises(DiskExists, match="no disk of ours"):
            touch()

    call("lvremove", "-q", "-y", f"{stage.lvm.group}/{disk.path.name}")
    expect_content(stage, stage.backend.flatten(disk))
    stage.backend.remove(disk)
    assert frozenset() == stage.left()


def test_who_is_killed_while_a_thick_disk_grows_leaves_zeros_behind_it(stage: LvmStage, base: BaseImage) -> None:
    leave_old_bytes(stage.lvm)
    disk = stage.backend.create(base, spec_of(stage))
    for step, size in ((2, 8), (4, 9)):  # extents filled with zeros; extents that nobody has
        killed_before(step, partial(stage.backend.resize, disk, size * MIB))
        expect_content(stage, stage.backend.describe(spec_at(disk)))
        grown = stage.backend.resize(disk, size * MIB)
        assert size * MIB == grown.size
        expect_content(stage, grown)
    stage.backend.remove(disk)
    assert frozenset() == stage.left()


def test_who_is_killed_while_a_disk_goes_leaves_none_and_clears_nothing_that_is_open(stage: LvmStage, base: BaseImage) -> None:
    stage.volume_clear = "zero"
    disk = stage.backend.create(base, spec_of(stage))
    killed_before(2, lambda: stage.backend.remove(disk))

    with pytest.raises(DiskNotFound, match="being removed"):
        stage.backend.describe(spec_at(disk))
    with disk.path.open("rb") as machine:
        for touch in (lambda: stage.backend.create(base, spec_at(disk)), lambda: stage.backend.remove(disk)):
            with pytest.raises(DiskInUse, match="is open"):
                touch()
        assert CONTENT == machine.read(len(CONTENT))
    stage.backend.remove(disk)
    assert frozenset() == stage.left()


# ------------------------------------------------------------------------------------------------------------- old bytes


def leave_old_bytes(lvm: Lvm) -> None:
    """Write what others would have written into extents that are free then."""
    call("lvcreate", "-q", "-y", "-n", "old", "-L", "40m", "-Zn", "-Wn", lvm.group)
    with lvm.device("old").open("r+b", buffering=0) as file:
        for position in range(0, 40 * MIB, MIB):
            os.pwrite(file.fileno(), OLD * MIB, position)
        os.fsync(file.fileno())
    call("lvremove", "-q", "-y", f"{lvm.group}/old")


def volume_over(lvm: Lvm, extents: str) -> bytes:
    """What is in extents, seen by somebody who is given them."""
    (place, _, span) = extents.rpartition(":")
    first, last = span.split("-")
    call(
        "lvcreate", "-q", "-y", "-n", "next", "-l", f"{int(last) - int(first) + 1}", "-Zn", "-Wn", lvm.group, f"{place}:{span}"
    )
    try:
        return lvm.device("next").read_bytes()
    finally:
        call("lvremove", "-q", "-y", f"{lvm.group}/next")


@pytest.mark.parametrize("stage", ["thick", "thick-snapshot"], indirect=True)
def test_nothing_of_what_extents_held_before_is_on_a_disk(stage: LvmStage, base: BaseImage) -> None:
    leave_old_bytes(stage.lvm)

    disk = stage.backend.create(base, spec_of(stage, size=10 * MIB))

    assert OLD * EXTENT == volume_over(stage.lvm, f"/dev/ubda:{_behind(stage.lvm)}"), "the extents held nothing"
    expect_content(stage, disk)
    grown = stage.backend.resize(disk, 12 * MIB)
    assert 12 * MIB == grown.size
    expect_content(stage, grown)
    stage.backend.remove(grown)


def _behind(lvm: Lvm) -> str:
    """A free extent that held old bytes: the last of them."""
    free = call("pvs", "--noheadings", "--segments", "-o", "pvseg_start,segtype", "/dev/ubda").split()
    start = max(int(first) for first, kind in zip(free[::2], free[1::2], strict=True) if kind == "free")
    return f"{start}-{start}"


@pytest.mark.parametrize(("how", "size"), [("zero", None), ("shred", None), ("zero", 2 * MIB)])
def test_what_a_guest_wrote_is_overwritten_as_configured(stage: LvmStage, base: BaseImage, how: str, size: int | None) -> None:
    backend = stage.configured(volume_clear=how, volume_clear_size=size)
    disk = backend.create(base, spec_of(stage))
    stage.write(disk, 0, b"secret" * 100)
    stage.write(disk, 5 * MIB, b"secret" * 100)
    extents = stage.lvm.field(disk.path.name, "seg_pe_ranges")

    backend.remove(disk)

    found = volume_over(stage.lvm, extents)
    assert (size is not None) == (b"secret" in found[2 * MIB :])
    assert b"secret" not in found[: 2 * MIB]
    assert (how == "zero") == (found[: 2 * MIB] == bytes(2 * MIB))


@pytest.mark.parametrize("stage", ["thin"], indirect=True)
def test_a_pool_that_gives_out_what_others_have_written_is_refused(stage: LvmStage, base: BaseImage) -> None:
    call("lvchange", "-q", "--zero", "n", f"{stage.lvm.group}/{stage.lvm.pool}")
    try:
        with pytest.raises(Unsupported, match="what others have written") as told:
            stage.backend.create(base, spec_of(stage))
    finally:
        call("lvchange", "-q", "--zero", "y", f"{stage.lvm.group}/{stage.lvm.pool}")

    assert "lvchange --zero y" in str(told.value.hint)
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["thin"], indirect=True)
def test_a_thin_disk_occupies_what_is_not_zero(stage: LvmStage, base: BaseImage) -> None:
    disk = stage.backend.create(base, spec_of(stage, size=1024 * MIB))

    assert 1024 * MIB == disk.size
    assert len(CONTENT) - 2 * MIB <= disk.allocated < 3 * MIB
    stage.backend.remove(disk)


# ----------------------------------------------------------------------------------------------------- images' volumes


@pytest.mark.parametrize("stage", ["snapshot"], indirect=True)
def test_an_image_has_one_volume_which_goes_with_its_last_disk(stage: LvmStage, base: BaseImage) -> None:
    specs = [spec_of(stage) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        disks = list(pool.map(lambda spec: stage.backend.create(base, spec), specs))

    (own,) = [name for name in stage.left() if name.startswith("underlay_base_")]
    assert "read-only" == stage.lvm.field(own, "lv_permissions")
    for disk in disks:
        assert own in stage.left()
        expect_content(stage, disk)
        stage.backend.remove(disk)
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["snapshot"], indirect=True)
def test_disks_that_come_while_others_go_never_lose_their_image(stage: LvmStage, base: BaseImage) -> None:
    goes = stage.backend.create(base, spec_of(stage))
    with ThreadPoolExecutor(2) as pool:
        removal = pool.submit(stage.backend.remove, goes)
        comes = pool.submit(stage.backend.create, base, spec_of(stage)).result()
        removal.result()

    expect_content(stage, comes)
    stage.backend.remove(comes)
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["thick-snapshot"], indirect=True)
def test_a_snapshot_has_room_for_all_that_is_written_or_is_not_made(stage: LvmStage, base: BaseImage) -> None:
    with stage.lvm.in_pieces(4):  # where each volume has several segments
        disk = stage.backend.create(base, spec_of(stage))
    before = stage.left()
    with stage.lvm.without_room(in_pool=False, but=4), pytest.raises(InsufficientSpace):
        stage.backend.create(base, spec_of(stage))

    assert before == stage.left()
    written = os.urandom(6 * MIB)
    stage.write(disk, 0, written)
    assert written == stage.read(disk)
    stage.backend.remove(disk)
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["thick-snapshot"], indirect=True)
def test_a_snapshot_that_was_lost_is_cleared_and_goes(stage: LvmStage, base: BaseImage) -> None:
    stage.volume_clear = "zero"
    disk = stage.backend.create(base, spec_of(stage))
    name, group = disk.path.name, stage.lvm.group
    tags, origin = stage.lvm.field(name, "lv_tags").split(";"), stage.lvm.field(name, "origin")
    call("lvremove", "-q", "-y", f"{group}/{name}")
    words = [word for tag in tags for word in ("--addtag", tag)]
    call("lvcreate", "-q", "-y", "-s", "-n", name, "-L", "1m", *words, f"{group}/{origin}")
    with pytest.raises(OSError, match="Input/output error"):
        stage.write(disk, 0, b"secret!!" * (2 * MIB // 8))
    extents = stage.lvm.field(name, "seg_pe_ranges")

    stage.backend.remove(disk)

    assert bytes(EXTENT) == volume_over(stage.lvm, extents)
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["snapshot"], indirect=True)
def test_a_disk_that_somebody_made_smaller_than_it_was_is_one_still(stage: LvmStage, base: BaseImage) -> None:
    spec = spec_of(stage)
    disk = stage.backend.create(base, spec)
    size = int(stage.lvm.field(stage.lvm.field(disk.path.name, "origin"), "lv_size"))
    call("lvreduce", "-q", "-y", "-f", "-L", f"{size}b", f"{stage.lvm.group}/{disk.path.name}")

    assert size == stage.backend.describe(spec).size
    with pytest.raises(DiskExists):
        stage.backend.create(base, spec)

    expect_content(stage, stage.backend.describe(spec))
    stage.backend.remove(disk)
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["thin"], indirect=True)
def test_disks_that_are_made_at_once_never_fill_a_pool(stage: LvmStage, base: BaseImage) -> None:
    def make(spec: DiskSpec) -> InstanceDisk | None:
        try:
            return stage.backend.create(base, spec)
        except InsufficientSpace:
            return None

    with stage.lvm.without_room(in_pool=True, but=2), ThreadPoolExecutor(2) as pool:
        made = [disk for disk in pool.map(make, [spec_of(stage), spec_of(stage)]) if disk is not None]
        assert 1 == len(made)
        expect_content(stage, made[0])
    stage.backend.remove(made[0])
    assert frozenset() == stage.left()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_is_there_by_the_name_of_another_is_left_alone(stage: LvmStage) -> None:
    group = stage.lvm.group
    call("lvcreate", "-q", "-y", "-n", "mine", "-L", "1m", group)
    device = stage.lvm.device("mine")
    call("dmsetup", "create", "mine-dmcrypt", "--table", "0 8 linear /dev/ubda 0")
    call("dmsetup", "mknodes", "mine-dmcrypt")
    with pytest.raises(OSError, match="Stale"):
        content.clear(device, uuid="another", how="zero", size=None)
    with device.open("rb"):
        changes.remove_made(Group(name=group, patience=1.0), "mine", tag=names.MAKING)
    try:
        for touch in (crypt.is_opened, crypt.close_side, crypt.side_bytes):
            with pytest.raises(DiskInUse, match="not of /dev/disks/mine"):
                touch(device)
    finally:
        call("dmsetup", "remove", "mine-dmcrypt")
        call("dmsetup", "mknodes", "mine-dmcrypt")
    assert {"mine"} == stage.left()
    call("lvremove", "-q", "-y", f"{group}/mine")


def test_a_volume_that_is_not_ours_is_never_touched(stage: LvmStage, base: BaseImage) -> None:
    spec = spec_of(stage)
    call("lvcreate", "-q", "-y", "-n", spec.path.name, "-L", "1m", stage.lvm.group)
    stage_facts = stage.lvm.field(spec.path.name, "lv_uuid,lv_size,lv_tags")
    disk = stage.backend.describe(spec)

    assert (None, "lvm", MIB) == (disk.format, disk.backend, disk.size)
    with pytest.raises(DiskExists, match="no disk of ours"):
        stage.backend.create(base, spec)
    for touch in (
        lambda: stage.backend.resize(disk, 8 * MIB),
        lambda: stage.backend.flatten(disk),
        lambda: stage.backend.attachment(disk),
        lambda: stage.backend.remove(disk),
    ):
        with pytest.raises(DiskUnrecorded):
            touch()
    assert stage_facts == stage.lvm.field(spec.path.name, "lv_uuid,lv_size,lv_tags")
    call("lvremove", "-q", "-y", f"{stage.lvm.group}/{spec.path.name}")


def test_a_disk_that_somebody_has_open_stays(stage: LvmStage, base: BaseImage) -> None:
    disk = stage.backend.create(base, spec_of(stage))

    with stage.opened(disk), pytest.raises(DiskInUse, match="is open"):
        stage.backend.remove(disk)

    expect_content(stage, stage.backend.describe(spec_at(disk)))
    stage.backend.remove(disk)


def test_a_disk_with_a_snapshot_of_somebody_stays_with_it(stage: LvmStage, base: BaseImage) -> None:
    disk = stage.backend.create(base, spec_of(stage))
    call("lvcreate", "-q", "-y", "-s", "-n", "mine", "-L", "4m", f"{stage.lvm.group}/{disk.path.name}")

    with pytest.raises(DiskInUse, match="mine"):
        stage.backend.remove(disk)

    assert {disk.path.name, "mine"} == stage.left()
    call("lvremove", "-q", "-y", f"{stage.lvm.group}/mine")
    stage.backend.remove(disk)


@pytest.mark.parametrize("stage", ["thick", "thin"], indirect=True)
def test_a_storage_tells_how_large_it_is_and_what_is_free(stage: LvmStage, base: BaseImage) -> None:
    backend = stage.backend
    assert isinstance(backend, MeasuresRoom)
    before = backend.room()
    disk = backend.create(base, spec_of(stage, size=64 * MIB))
    after = backend.room()
    backend.remove(disk)
    assert (before.total, before) == (after.total, backend.room())
    assert 0 < after.free < before.free <= before.total
    taken = before.free - after.free  # of a pool: what is written
    assert taken == 64 * MIB if stage.backend.type == "thick" else taken < 64 * MIB


def test_a_pool_that_is_not_there_has_no_size(stage: LvmStage) -> None:
    with pytest.raises(BackendUnavailable, match="no-such-pool is not there"):
        replace(stage.backend, type="thin", thin_pool="no-such-pool").room()


def test_no_room_is_told_with_what_there_is(stage: LvmStage, base: BaseImage) -> None:
    with pytest.raises(InsufficientSpace, match="the volume group disks has no room") as told:
        stage.backend.create(base, spec_of(stage, size=1 << 40))

    assert told.value.free > 100 * MIB
    assert frozenset() == stage.left()


@pytest.mark.parametrize("stage", ["thin"], indirect=True)
def test_a_pool_that_is_not_there_is_told(stage: LvmStage, base: BaseImage) -> None:
    with pytest.raises(BackendUnavailable, match="disks/absent is not there"):
        stage.configured(thin_pool="absent").create(base, spec_of(stage))


def test_who_has_the_lock_is_asked_for_in_the_hint(stage: LvmStage) -> None:
    with stage.lvm.locked(), pytest.raises(BackendUnavailable, match=r"its lock was held for 0\.5 s") as told:
        stage.configured(lock_timeout=0.5).describe(spec_of(stage))

    assert "/run/lock/lvm/V_disks" in str(told.value.hint)


def test_a_volume_that_is_not_active_is_made_so(stage: LvmStage, base: BaseImage, tmp_path: Path) -> None:
    spec = spec_of(stage)
    disk = stage.backend.create(base, spec)
    call("lvchange", "-q", "-an", f"{stage.lvm.group}/{disk.path.name}")

    stage.backend.extract(disk, tmp_path / "extracted", Extraction(format="raw"))

    assert CONTENT == (tmp_path / "extracted").read_bytes()[: len(CONTENT)]
    stage.backend.remove(disk)


def test_a_disk_that_was_given_another_name_is_not_taken_for_a_leftover(stage: LvmStage, base: BaseImage) -> None:
    spec = spec_of(stage)
    stage.backend.create(base, spec)
    call("lvrename", "-q", stage.lvm.group, spec.path.name, f"{spec.path.name}.kept")

    made = stage.backend.create(base, spec)
    stage.backend.remove(made)

    assert {f"{spec.path.name}.kept"} == stage.left()
    call("lvremove", "-q", "-y", f"{stage.lvm.group}/{spec.path.name}.kept")


@pytest.mark.component("mkfs.ext4")
@pytest.mark.parametrize("stage", ["snapshot"], indirect=True)
def test_a_file_system_grows_with_its_disk(stage: LvmStage, tmp_path: Path) -> None:
    image = tmp_path / "image.ext4"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    call("mkfs.ext4", "-q", image)
    filled = host_of(tmp_path, {"fake:fs": FakeImage(image.read_bytes())}).ensure("fake:fs")

    disk = stage.backend.create(filled, replace(spec_of(stage, size=24 * MIB), grow_filesystem=True))

    call("e2fsck", "-f", "-n", disk.path)
    (blocks,) = [line for line in call("dumpe2fs", "-h", disk.path).splitlines() if line.startswith("Block count:")]
    assert 24 * 1024 == int(blocks.split()[-1])  # of 1 KiB
    stage.backend.remove(disk)


# -------------------------------------------------------------------------------------------------------------- encrypted


def test_an_encrypted_disk_needs_its_key_and_grows_while_it_is_open(stage: LvmStage, base: BaseImage) -> None:
    key, spec = os.urandom(64), spec_of(stage)
    disk = stage.backend.create(base, replace(spec, key=key))
    stored = disk.path.read_bytes()
    assert (b"LUKS", False) == (stored[:4], CONTENT[:4096] in stored)
    expect_content(stage, disk)
    with pytest.raises(DiskExists, match="not the one that it was made with"):
        stage.backend.create(base, replace(spec, key=b"another"))
    killed_before(2, lambda: stage.backend.resize(disk, 9 * MIB))  # the volume has its room, its opened side has not
    grown = stage.backend.resize(disk, 9 * MIB)
    assert 9 * MIB == grown.size
    expect_content(stage, grown)
    call("cryptsetup", "close", f"{disk.path.name}-dmcrypt")

    with pytest.raises(Unsupported, match="not open"):
        stage.backend.resize(grown, 12 * MIB)
    larger = replace(spec, size=9 * MIB)
    with pytest.raises(DiskExists, match="no key was given"):
        stage.backend.create(base, larger)
    with pytest.raises(DiskExists, match="not the one that it was made with"):
        stage.backend.create(base, replace(larger, key=b"another"))
    opened = stage.backend.create(base, replace(larger, key=key))
    expect_content(stage, opened)
    extents = stage.lvm.field(disk.path.name, "seg_pe_ranges")
    stage.configured(volume_clear="none").remove(opened)
    assert frozenset() == stage.left()
    expect_no_key_slots(stage.lvm, extents)


def expect_no_key_slots(lvm: Lvm, extents: str) -> None:
    call("lvcreate", "-q", "-y", "-n", "next", "-l", "16", "-Zn", "-Wn", lvm.group, extents.split()[0])
    try:
        told = call("cryptsetup", "luksDump", lvm.device("next"))
    finally:
        call("lvremove", "-q", "-y", f"{lvm.group}/next")
    assert "argon2id" not in told


# ----------------------------------------------------------------------------------------------------------- the host


def test_a_host_keeps_disks_in_a_volume_group(stage: LvmStage, tmp_path: Path) -> None:
    options = f'[disks.lvm]\nvolume_group = "{stage.lvm.group}"\ntype = "snapshot"\nthin_pool = "{stage.lvm.pool}"\n'
    host, instance = host_of(tmp_path, {"fake:image": FakeImage(CONTENT)}, options), f"vm-{uuid4().hex[:12]}"

    disk = host.create_disk(instance, "fake:image", size="8MiB", backend="lvm")

    told = host.attachment(instance)
    assert ("block", f"/dev/disks/{instance}_disk", "raw") == (told.type, told.source, told.format)
    assert [(instance, disk.path, 8 * MIB, disk.base)] == [(one.instance, one.path, one.size, one.base) for one in host.disks()]
    assert 16 * MIB == host.resize_disk(instance, "16MiB").size
    with stage.opened(disk), pytest.raises(DiskInUse):
        host.remove_disk(instance)
    host.extract_disk(instance, tmp_path / "extracted.qcow2")
    host.remove_disk(instance)
    assert [] == host.disks()
    assert frozenset() == stage.left()
