"""What records of instances claim: every file of every version of their images, all their swaps, all their ephemerals."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from machine import Machine
from probing import IMAGE, ORIGINAL, OTHER, UUID, inventory, original, put, record, uses
from storing import published, stage
from underlay.config import parse_config
from underlay.model import Ephemeral, InstanceRecord
from underlay.naming import STORED_FORMATS, CacheKind, content_version_id, kind_of_name
from underlay.plan import CachedFile, Inventory, Rules
from underlay.refs import parse_ref
from underlay.store import listing, refs
from underlay.usage.records import EphemeralFormats, RecordsProbe, by_directory, directory_names, owner_of

ROOT = Path("/cache")
URL = "https://images.example/debian.raw"


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:7]


def listed(*names: str, kind: CacheKind = CacheKind.BASE, versions: dict[str, Sequence[str]] | None = None) -> Inventory:
    """A cache that has these files."""
    files = [
        CachedFile(
            name=name, kind=kind_of_name(name, kind=kind) or "", device=1, inode=number, size=1, mtime_ns=0, ctime_ns=0,
            links=1, allocated=1, used_ns=0,
        )
        for number, name in enumerate(names)
    ]  # fmt: skip
    return Inventory(cache="base", root=ROOT, kind=kind, rules=Rules(), files=files, versions=versions or {}, free=0)


def claimed(cache: Inventory, *records: InstanceRecord, formats: EphemeralFormats | None = None) -> dict[str, set[str]]:
    return uses(RecordsProbe(records, formats or EphemeralFormats()).observe([cache]))


def none(**changes: object) -> InstanceRecord:
    return record(**({"image_ref": None} | changes))


# ------------------------------------------------------------------------------------------------------------------ images


FORMS = [
    ORIGINAL,
    *(f"{ORIGINAL}.{stored}" for stored in STORED_FORMATS),
    f"{ORIGINAL}_sm",
    f"{ORIGINAL}_5",
    f"{ORIGINAL}_20",
    f"{ORIGINAL}_10737418240",
    f"{ORIGINAL}_{'9' * 60}",
]


@pytest.mark.parametrize("field", ["image_ref", "kernel_id", "ramdisk_id"])
@pytest.mark.parametrize("spelling", [IMAGE, IMAGE.upper(), f"glance:{IMAGE}", f"glance:{IMAGE.upper()}"])
def test_a_ref_claims_every_file_of_its_image_and_no_other(field: str, spelling: str) -> None:
    cache = listed(*FORMS, original(OTHER), f"{original(OTHER)}_20", "swap_1", "ephemeral_1_0706d66")
    assert {name: {"instance-image"} for name in FORMS} == claimed(cache, none(**{field: spelling}))


def test_the_sha1_of_the_id_as_it_is_spelled_is_claimed_as_nova_has_it() -> None:
    for spelling in (IMAGE.upper(), "an old id: 42", "", "été"):
        assert original(spelling) in claimed(listed(original(spelling)), none(image_ref=spelling))


def test_all_copies_of_an_image_are_claimed_however_many_there_are() -> None:
    """Nova's own manager walks a list that it shortens, and overlooks some."""
    names = [f"{ORIGINAL}_{number}" for number in range(1, 200)]
    assert set(names) == set(claimed(listed(*names), record()))


def test_leftovers_are_claimed_by_nobody() -> None:
    assert {ORIGINAL} == set(claimed(listed(ORIGINAL, f"{ORIGINAL}.part", f"{ORIGINAL}.converted"), record()))


def test_instances_without_images_claim_none() -> None:
    assert {} == claimed(listed(*FORMS), none(), record(image_ref=""))


def test_a_recorded_ref_claims_its_image_whatever_the_version(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    store = machine.host().config.caches["base"]
    store.prepare()
    first = published(store, b"one", version="1", ref=parse_ref(URL))
    second = published(store, b"two", version="2", ref=parse_ref(URL))
    other = published(store, b"three", version="1", ref=parse_ref("https://images.example/other.raw"))
    put(machine, f"{first.name[:40]}_20")
    found = claimed(inventory(machine), none(image_ref=URL))
    assert {first.name, second.name, f"{first.name[:40]}_20"} == set(found)
    assert other.name not in found
    assert {other.name} == set(claimed(inventory(machine), none(image_ref="https://images.example/other.raw#1")))


def test_a_url_is_claimed_in_any_spelling(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    store = machine.host().config.caches["base"]
    store.prepare()
    image = published(store, b"one", ref=parse_ref(URL))
    for spelling in ("HTTPS://Images.Example/debian.raw", "https://user:word@images.example:443/debian.raw"):
        assert parse_ref(spelling).canonical == URL
        assert {image.name} == set(claimed(inventory(machine), none(image_ref=spelling)))


def test_versions_that_a_ref_has_meant_claim_files_that_record_nothing(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    store = machine.host().config.caches["base"]
    store.prepare()
    ref = parse_ref(URL)
    versions = [content_version_id(ref, "a" * 64), content_version_id(ref, "b" * 64)]
    for version in versions:
        refs.remember(store, ref, version, validator=None, now=datetime(2026, 1, 1, tzinfo=UTC))
    for version in versions:
        put(machine, f"{original(version)}.qcow2")  # as after a copy to a file system that keeps no attributes
    assert {f"{original(version)}.qcow2" for version in versions} == set(claimed(inventory(machine), none(image_ref=URL)))


def test_masters_are_none_of_the_records_business() -> None:
    assert {} == claimed(listed(IMAGE, kind=CacheKind.MASTERS), record())


# ---------------------------------------------------------------------------------------------------- swaps and ephemerals


def test_all_swaps_of_all_instances_are_claimed() -> None:
    cache = listed("swap_1", "swap_512", "swap_1024", "swap_2048", "swap_0")
    found = claimed(cache, none(swap_mib=(512, 1024)), none(uuid=OTHER, name="other", swap_mib=(2048,)))
    assert {name: {"instance-swap"} for name in ("swap_512", "swap_1024", "swap_2048")} == found


def test_all_ephemerals_of_all_instances_are_claimed() -> None:
    names = [f"ephemeral_{size}_0706d66" for size in (1, 2, 3, 4)]
    found = claimed(
        listed(*names),
        none(ephemerals=(Ephemeral(size_gib=1), Ephemeral(size_gib=2))),
        none(uuid=OTHER, ephemerals=(Ephemeral(size_gib=3),)),
    )
    assert {name: {"instance-ephemeral"} for name in names[:3]} == found


@pytest.mark.parametrize(
    ("os_type", "guest_format", "default", "commands", "expected"),
    [
        (None, None, None, {}, {"0706d66"}),  # vfat: Nova's name for every instance by default
        ("linux", None, None, {}, {"0706d66", "40d1d2c"}),  # and ext4, what is really in the file
        ("windows", None, None, {}, {"0706d66", "68e98b8"}),  # ntfs
        ("linux", "xfs", None, {}, {"0706d66", "310201b"}),
        (None, "ext3", None, {}, {"0706d66", "66f137c"}),
        ("linux", None, "ext3", {}, {"66f137c"}),
        ("linux", "xfs", "ext3", {}, {"66f137c", "310201b"}),
        ("linux", None, None, {"linux": "mkfs.ext4 -L %(fs_label)s"}, {md5("mkfs.ext4 -L %(fs_label)s")}),
        ("linux", None, "ext3", {"linux": "mkfs.x"}, {md5("mkfs.x")}),
        ("linux", "xfs", None, {"linux": "mkfs.x"}, {md5("mkfs.x"), "310201b"}),
        ("windows", None, None, {"default": "mkfs.any"}, {md5("mkfs.any")}),
        (None, None, None, {"default": "mkfs.any", "linux": "mkfs.x"}, {md5("mkfs.any")}),
        ("windows", None, None, {"linux": "mkfs.x"}, {"0706d66", "68e98b8"}),
    ],
)
def test_an_ephemeral_is_claimed_by_novas_name_and_by_what_is_in_it(
    os_type: str | None, guest_format: str | None, default: str | None, commands: dict[str, str], expected: set[str]
) -> None:
    marks = {"0706d66", "40d1d2c", "66f137c", "68e98b8", "310201b", md5("mkfs.x"), md5("mkfs.any"), *expected}
    cache = listed(*(f"ephemeral_5_{mark}" for mark in marks), "ephemeral_6_0706d66")
    found = claimed(
        cache,
        none(os_type=os_type, ephemerals=(Ephemeral(size_gib=5, guest_format=guest_format),)),
        formats=EphemeralFormats(default, commands),
    )
    assert expected == {name.removeprefix("ephemeral_5_") for name in found}


def test_the_options_of_ephemerals_are_those_of_the_configuration(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, disks='default_ephemeral_format = "xfs"\nvirt_mkfs = ["windows=mkfs.w -n %(fs_label)s"]')
    put(machine, "ephemeral_1_310201b")
    put(machine, f"ephemeral_2_{md5('mkfs.w -n %(fs_label)s')}")
    put(machine, "ephemeral_1_0706d66")
    records = [
        none(ephemerals=(Ephemeral(size_gib=1),)),
        none(uuid=OTHER, os_type="windows", ephemerals=(Ephemeral(size_gib=2),)),
    ]
    verdicts = machine.host().plan_prune(instances=records).verdicts
    assert ["ephemeral_1_0706d66"] == [one.file.name for one in verdicts if one.removes]


# ------------------------------------------------------------------------------------------------ directories of instances


@pytest.mark.parametrize("task", ["resize_prep", "resize_migrating", "resize_migrated", "resize_finish"])
def test_a_resize_under_way_has_two_directories(task: str) -> None:
    names = directory_names([record(task_state=task, name="web")])
    assert {"web", UUID, "web_resize", f"{UUID}_resize"} == names


@pytest.mark.parametrize("task", [None, "resize_confirming", "resize_reverting", "rebuilding"])
def test_a_resized_instance_has_two_directories_and_others_one(task: str | None) -> None:
    assert 4 == len(directory_names([record(vm_state="resized", task_state=task)]))
    assert 2 == len(directory_names([record(vm_state="active", task_state=task)]))


def test_a_directory_belongs_to_the_instance_of_its_name() -> None:
    known = by_directory([record(name="web"), record(uuid=OTHER, name="db")])
    for name in ("web", UUID, "web_resize", f"{UUID}_resize"):
        owner = owner_of(name, known)
        assert owner is not None
        assert UUID == owner.uuid
    assert None is owner_of("somebody", known)
    assert None is owner_of("web_resize_resize", known)


def test_listing_and_claiming_agree_on_real_files(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    for name in (*FORMS, "swap_512", "ephemeral_1_40d1d2c", "stranger", "line\nbreak", "bad\udcff"):
        put(machine, name)
    (machine.base / f"{original(OTHER)}").symlink_to(ORIGINAL)
    (machine.base / f"{original('dir')}").mkdir()
    store = machine.host().config.caches["base"]
    store.prepare()
    stage(store, b"in the making")
    names = {file.name for file in listing.files(store)}
    assert {*FORMS, "swap_512", "ephemeral_1_40d1d2c"} == {name for name in names if "/" not in name}
    assert set(FORMS) == set(claimed(inventory(machine), record()))


def test_the_refs_of_two_caches_are_told_apart(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    text = machine.config.read_text(encoding="utf-8")
    (tmp_path / "second").mkdir()
    text += f'[caches.second]\nkind = "base"\npath = "{tmp_path}/second"\n'
    machine.config.write_text(text, encoding="utf-8")
    assert parse_config(text, origin=machine.config).caches["second"].root == tmp_path / "second"
    put(machine, ORIGINAL)
    (tmp_path / "second" / f"{ORIGINAL}_20").touch()
    found = RecordsProbe([record()], EphemeralFormats()).observe([inventory(machine), inventory(machine, "second")])
    assert {(machine.base, ORIGINAL), (tmp_path / "second", f"{ORIGINAL}_20")} == {(use.root, use.name) for use in found.uses}
