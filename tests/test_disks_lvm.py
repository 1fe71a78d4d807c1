"""The lvm backend without a device mapper: names, tags, options, what LVM's reports and errors mean."""

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from underlay.config import parse_config
from underlay.disks.lvm import LvmBackend, names
from underlay.disks.lvm.commands import Group
from underlay.disks.lvm.looking import rounded
from underlay.errors import (
    BackendUnavailable,
    ConfigError,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    FormatMismatch,
    InvalidName,
    ToolFailed,
    UnderlayError,
    Unsupported,
)
from underlay.model import BaseImage, DiskRecord, DiskSpec, ImageVersion
from underlay.refs import parse_ref
from underlay.registry import open_backend
from underlay.run import Ended

INSTANCES = st.text(alphabet="ab1._+-", min_size=1, max_size=6).map(lambda text: f"v{text}")
DISKS = st.text(alphabet="ab1._+-", max_size=5).map(lambda text: f"disk{text}")


def record(**changes: str) -> DiskRecord:
    values = {"instance": "vm", "name": "disk", "backend": "lvm", "format": "raw", "base": "a" * 40, "cache": "/cache"}
    return msgspec.convert({"layout": 1, "version_id": "v", **values, **changes}, type=DiskRecord)


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_volume_is_called_as_nova_calls_it() -> None:
    instance = "3f9c1f3e-5d1c-4a39-9b1c-3f5f6c8ddc1e"
    backend = LvmBackend(volume_group="nova")

    assert Path(f"/dev/nova/{instance}_disk") == backend.place(instance, "disk")
    assert Path(f"/dev/nova/{instance}_disk.eph0__1") == backend.place(instance, "disk.eph0_1")


@given(st.tuples(INSTANCES, DISKS), st.tuples(INSTANCES, DISKS))
def test_no_two_disks_meet_in_one_volume(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (one == other) == (names.volume_name("vg", *one) == names.volume_name("vg", *other))


@given(INSTANCES, DISKS)
def test_no_disk_is_called_as_what_is_on_its_way(instance: str, name: str) -> None:
    volume = names.volume_name("vg", instance, name)
    temporary = names.temporary_name(volume)

    assert temporary != names.temporary_name(volume)
    # A disk's has one underscore that stands alone, and this one has more.
    assert 1 == sum(len(run) % 2 for run in runs_of_underscores(volume))
    assert 1 < sum(len(run) % 2 for run in runs_of_underscores(temporary))


def runs_of_underscores(name: str) -> list[str]:
    return "".join(letter if letter == "_" else " " for letter in name).split()


@pytest.mark.parametrize(
    ("instance", "name"),
    [("snapshot-1", "disk"), ("pvmove0", "disk"), ("vm", "tdata"), ("vm", "rimage.1"), ("vm", "_disk"), ("x" * 128, "disk")],
)
def test_what_lvm_keeps_for_itself_or_is_too_long_is_no_name(instance: str, name: str) -> None:
    with pytest.raises(InvalidName, match="no volume can be called"):
        names.volume_name("vg", instance, name)


def test_hyphens_count_twice() -> None:
    assert names.volume_name("vg", "a" * 60, "disk")
    with pytest.raises(InvalidName, match="too long") as told:
        names.volume_name("vg", "a-" * 30 + "a" * 20, "disk")
    assert "characters shorter" in str(told.value.hint)


def test_a_uuid_fits_with_a_long_volume_group() -> None:
    assert names.volume_name("nova-volumes", "3f9c1f3e-5d1c-4a39-9b1c-3f5f6c8ddc1e", "disk.local")


# ------------------------------------------------------------------------------------------------------------- records


@given(st.text(min_size=1, max_size=300), st.text(max_size=100))
def test_a_record_is_read_from_its_tags_in_any_order(cache: str, version: str) -> None:
    written = record(cache=cache, version_id=version)
    tags = names.record_tags(written)

    assert written == names.record_in([*reversed(tags), names.made_for("vm_disk"), "another"])
    assert all(len(tag) <= 1024 and set(tag) <= set(TAG) for tag in tags)


TAG = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-/=!:&#"  # lvm(8), "Valid names"


def test_a_long_record_takes_several_tags() -> None:
    written = record(cache="/" + "long/" * 300)

    assert 3 == len(names.record_tags(written))
    assert written == names.record_in(names.record_tags(written))


@pytest.mark.parametrize(
    "tags",
    [[], ["another"], ["underlay.base"], ["underlay.record.0.e30="], ["underlay.record.0.x"], ["underlay.record.x.e30="]],
)
def test_what_is_no_record_says_nothing(tags: list[str]) -> None:
    assert names.record_in(tags) is None


def test_an_images_volume_is_one_for_each_content_and_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"content")

    def image(name: str) -> BaseImage:
        return BaseImage(
            name=name,
            cache=tmp_path,
            format="raw",
            size=7,
            virtual_size=512,
            allocated=512,
            last_used=datetime.now(UTC),
            record=None,
        )

    first = names.base_name(image("image"), size=None)
    assert first == names.base_name(image("image"), size=None)
    assert first != names.base_name(image("image"), size=1 << 20)
    os.utime(path)  # as each use does
    assert first == names.base_name(image("image"), size=None)
    path.write_bytes(b"another")
    assert first != names.base_name(image("image"), size=None)


# ------------------------------------------------------------------------------------------------------------- options


def configured(options: str) -> LvmBackend:
    config = parse_config(f'[caches.one]\nkind = "base"\npath = "/cache"\n[disks]\n{options}', origin=Path("test"))
    backend = open_backend("lvm", config.disks)
    assert isinstance(backend, LvmBackend)
    return backend


def test_the_options_reach_the_backend() -> None:
    backend = configured(
        'hw_disk_discard = "unmap"\ndisk_cachemodes = ["block=none", "file=writeback"]\n'
        '[disks.lvm]\nvolume_group = "nova"\ntype = "snapshot"\nthin_pool = "pool"\nvolume_clear = "shred"\n'
        'volume_clear_size = "64MiB"\nlock_timeout = "5s"\n'
    )

    expected = LvmBackend(
        volume_group="nova",
        type="snapshot",
        thin_pool="pool",
        volume_clear="shred",
        volume_clear_size=64 << 20,
        lock_timeout=5.0,
        cache_mode="none",
        discard="unmap",
    )
    assert expected == backend


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "no volume group"),
        ('volume_group = "a/b"', "no name in LVM"),
        ('volume_group = "-vg"', "no name in LVM"),
        ('volume_group = ".."', "no name in LVM"),
        ('volume_group = "vg"\ntype = "thin"', "need a pool"),
        ('volume_group = "vg"\nthin_pool = "pool"', "in no pool"),
        ('volume_group = "vg"\ntype = "fat"', "type"),
        ('volume_group = "vg"\nvolume_clear = "burn"', "volume_clear"),
        ('volume_group = "vg"\nvolume_clear_size = 64', "unit"),
        ('volume_group = "vg"\nvolume_clear_size = "0B"', "nothing at all"),
        ('volume_group = "vg"\nlock_timeout = "0s"', "no time at all"),
        ('volume_grup = "vg"', "volume_grup"),
    ],
)
def test_a_wrong_option_is_told(options: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        configured(f"[disks.lvm]\n{options}\n")


def test_what_it_cannot_is_refused_without_asking_lvm() -> None:
    backend = LvmBackend(volume_group="absent")
    spec = DiskSpec(instance="vm", name="disk", path=Path("/dev/absent/vm_disk"))

    with pytest.raises(Unsupported, match="clone"):
        backend.clone(ImageVersion(ref=parse_ref("https://example.org/image")), spec)
    with pytest.raises(Unsupported, match="snapshot"):
        backend.discard_snapshot("lvm:anything")


def test_a_disk_of_another_volume_group_is_never_looked_for_in_this_one() -> None:
    backend = LvmBackend(volume_group="underlay-absent")
    spec = DiskSpec(instance="vm", name="disk", path=Path("/dev/another/vm_disk"))

    for ask in (backend.exists, backend.describe):
        with pytest.raises(BackendUnavailable, match="/dev/another/vm_disk is not in the volume group underlay-absent") as told:
            ask(spec)
        assert "be another" in str(told.value.hint)


def test_an_image_that_is_not_raw_is_refused_without_asking_lvm(tmp_path: Path) -> None:
    base = BaseImage(
        name="a",
        cache=tmp_path,
        format="qcow2",
        size=1,
        virtual_size=512,
        allocated=512,
        last_used=datetime.now(UTC),
        record=None,
    )

    with pytest.raises(FormatMismatch, match="is qcow2"):
        LvmBackend(volume_group="absent").create(base, DiskSpec(instance="a", name="disk", path=Path("/dev/absent/a_disk")))


# ------------------------------------------------------------------------------------------------------ asking lvm2


@pytest.mark.component("lvm2")
@pytest.mark.component("root")
def test_a_volume_group_that_is_not_there_is_told() -> None:
    backend = LvmBackend(volume_group="underlay-absent")
    spec = DiskSpec(instance="vm", name="disk", path=Path("/dev/underlay-absent/vm_disk"))

    for ask in (backend.exists, backend.describe):
        with pytest.raises(BackendUnavailable, match="the volume group underlay-absent is not there") as told:
            ask(spec)
        assert "[disks.lvm]" in str(told.value.hint)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('  Volume group "vg" not found\n  Cannot process volume group vg', BackendUnavailable),
        ("  WARNING: Couldn't find device with uuid abc.\n  Cannot change VG vg while PVs are missing.", BackendUnavailable),
        ("  Volume group vg is exported", BackendUnavailable),
        ('  Failed to find logical volume "vg/a"', DiskNotFound),
        ('  Logical Volume "a" already exists in volume group "vg"', DiskExists),
        ("  Logical volume vg/a in use.", DiskInUse),
        ("  Logical volume vg/a is used by another device.", DiskInUse),
        ("  something else", ToolFailed),
    ],
)
def test_what_a_program_says_becomes_the_error_for_it(said: str, error: type[UnderlayError]) -> None:
    ended = Ended(status=5, output=b"", errors=said.encode())

    assert type(Group(name="vg", patience=1.0)._translated("lvremove", ended, "volume vg/a")) is error


@given(st.integers(min_value=0, max_value=1 << 50), st.sampled_from([512, 1 << 20, 4 << 20]))
def test_a_size_is_rounded_up_to_whole_extents(size: int, extent: int) -> None:
    found = rounded(size, extent)

    assert found % extent == 0
    assert size <= found < size + extent
