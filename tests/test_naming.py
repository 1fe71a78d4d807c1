"""Names in both grammars, against names that Nova and Ironic are known to make."""

import hashlib
import re
from pathlib import Path

import pytest

from underlay.errors import InvalidName
from underlay.naming import (
    STORED_FORMATS,
    CacheKind,
    CachePaths,
    candidate_names,
    content_version_id,
    is_image_name,
    kind_of_name,
    master_name,
    named_format,
    nova_lock,
    original_name,
    plain_name,
)
from underlay.refs import parse_ref

UUID = "70a599e0-31e7-49b7-b260-868f441e862b"
GLANCE = parse_ref(UUID)
HTTP = parse_ref("https://host/disk.qcow2")
SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


def test_a_raw_glance_image_is_called_as_nova_calls_it() -> None:
    # sha1 of the image id, as nova.virt.libvirt.utils.get_cache_fname computes it
    assert "88607926df58f2de85c9d44cd0324614a44d28b3" == original_name(UUID, ref=GLANCE, stored_format="raw")


@pytest.mark.parametrize("stored_format", STORED_FORMATS[1:])
def test_a_glance_image_of_another_format_carries_it_as_a_suffix(stored_format: str) -> None:
    assert f"{hashlib.sha1(UUID.encode()).hexdigest()}.{stored_format}" == original_name(
        UUID, ref=GLANCE, stored_format=stored_format
    )


def test_any_other_image_carries_a_suffix_even_when_raw_so_that_novas_manager_leaves_it_alone() -> None:
    version_id = content_version_id(HTTP, "ab" * 32)
    name = original_name(version_id, ref=HTTP, stored_format="raw")

    assert f"https://host/disk.qcow2#sha256:{'ab' * 32}" == version_id
    assert f"{hashlib.sha1(version_id.encode()).hexdigest()}.raw" == name
    # nova.virt.libvirt.imagecache lists originals by their length of 40 and resized ones by 40 and "_"
    assert len(name) != 40
    assert "_" not in name


def test_a_master_is_called_as_ironic_calls_it() -> None:
    assert UUID == master_name(UUID, ref=GLANCE, raw=False)
    assert f"{UUID}.converted" == master_name(UUID, ref=GLANCE, raw=True)
    # uuid5 of the URL, as ironic.drivers.modules.image_cache computes it
    assert "3fc736c2-5035-571c-a0f6-4181bcb2551f" == master_name("any version", ref=HTTP, raw=False)


def test_another_version_has_another_name_in_a_base_cache_and_the_same_one_among_masters() -> None:
    versions = [content_version_id(HTTP, digit * 64) for digit in "ab"]

    assert 2 == len({original_name(version, ref=HTTP, stored_format="raw") for version in versions})
    assert 1 == len({master_name(version, ref=HTTP, raw=True) for version in versions})


def test_candidates_are_every_name_under_which_an_image_may_be_stored() -> None:
    stem = hashlib.sha1(b"v").hexdigest()

    assert [f"{stem}.raw"] == list(candidate_names("v", ref=HTTP, kind=CacheKind.BASE, raw_only=True))
    found = candidate_names("v", ref=HTTP, kind=CacheKind.BASE, raw_only=False)
    assert {f"{stem}.{stored}" for stored in STORED_FORMATS} == set(found)
    assert f"{stem}.raw" == found[-1]
    assert [UUID, f"{UUID}.converted"] == list(candidate_names(UUID, ref=GLANCE, kind=CacheKind.MASTERS, raw_only=False))
    assert [f"{UUID}.converted", UUID] == list(candidate_names(UUID, ref=GLANCE, kind=CacheKind.MASTERS, raw_only=True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (SHA1, "original"),
        (f"{SHA1}.qcow2", "original"),
        (f"{SHA1}.raw", "original"),
        (f"{SHA1}_10", "resized"),
        (f"{SHA1}_1234567890", "resized"),
        (f"{SHA1}_sm", "resized"),
        ("swap_1024", "swap"),
        ("ephemeral_20_default", "ephemeral"),
        ("ephemeral_20_40d1d2c", "ephemeral"),
        (f"{SHA1}.part", "leftover"),
        (f"{SHA1}.converted", "leftover"),
        (f"{SHA1}_10.part", "leftover"),
        (SHA1.upper(), None),
        (SHA1[:-1], None),
        (f"{SHA1}.iso", None),
        (f"{SHA1}_", None),
        (f"{SHA1}_10x", None),
        (f"{SHA1}_\u0661", None),
        ("swap_", None),
        ("swap_1G", None),
        ("ephemeral_20_short", None),
        ("ephemeral_20_toolongx", None),
        (f"{SHA1}\n", None),
        (".underlay", None),
        ("locks", None),
        ("backup.qcow2", None),
        ("", None),
    ],
)
def test_a_name_in_a_base_cache_has_a_meaning_or_is_a_strangers(name: str, kind: str | None) -> None:
    assert kind == kind_of_name(name, kind=CacheKind.BASE)
    assert (kind not in (None, "leftover")) == is_image_name(name, kind=CacheKind.BASE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (UUID, "master"),
        (f"{UUID}.converted", "master"),
        (f"{UUID}.part", None),
        (UUID.upper(), None),
        (SHA1, None),
        ("tmpabc123", None),
        (".underlay", None),
    ],
)
def test_a_name_among_masters_has_a_meaning_or_is_a_strangers(name: str, kind: str | None) -> None:
    assert kind == kind_of_name(name, kind=CacheKind.MASTERS)


@pytest.mark.parametrize(
    ("name", "kind", "claims"),
    [
        (f"{SHA1}.qcow2", CacheKind.BASE, "qcow2"),
        (f"{SHA1}.raw", CacheKind.BASE, "raw"),
        (SHA1, CacheKind.BASE, None),
        (f"{SHA1}_10", CacheKind.BASE, None),
        (f"{UUID}.converted", CacheKind.MASTERS, "raw"),
        (UUID, CacheKind.MASTERS, None),
    ],
)
def test_a_name_may_claim_a_format(name: str, kind: CacheKind, claims: str | None) -> None:
    assert claims == named_format(name, kind=kind)


@pytest.mark.parametrize("name", ["a", "A9", "x.y_z+1-2", "0" * 128])
def test_a_plain_name_is_taken_as_it_is(name: str) -> None:
    assert name == plain_name(name, what="an image")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-f", "a/b", "a\\b", "a b", "a\n", "a\0", "ä", "0" * 129, "~", "*"])
def test_a_name_that_could_leave_its_directory_is_refused(name: str) -> None:
    with pytest.raises(InvalidName) as error:
        plain_name(name, what="an instance")

    assert f"{name!r} is no name for an instance" == str(error.value)
    assert error.value.hint


def test_every_path_of_ours_but_an_image_lies_in_the_private_directory() -> None:
    paths = CachePaths(Path("/cache"))
    key = "0" * 64
    ours = [
        paths.format, paths.locks, paths.refs, paths.used, paths.disks, paths.leases, paths.tmp, paths.trash,
        paths.image_lock(SHA1), paths.ingest_lock(key), paths.space_lock, paths.layout_lock,
        paths.disk_lock(Path("/d")), paths.disk_info_lock(Path("/d")), paths.ref_record(key), paths.used_marker(SHA1),
        paths.disk_root(SHA1, Path("/d")), paths.ingest(key),
    ]  # fmt: skip

    assert Path("/cache/.underlay") == paths.private
    assert [] == [path for path in ours if not path.is_relative_to(paths.private)]
    assert len(ours) == len(set(ours))
    assert Path("/cache") / SHA1 == paths.image(SHA1)


def test_disks_share_a_bounded_number_of_locks() -> None:
    paths = CachePaths(Path("/cache"))
    locks = {paths.disk_lock(Path(f"/instances/{number}/disk")).name for number in range(20_000)}

    assert len(locks) <= 4096
    assert all(re.fullmatch(r"vdisk-[0-9a-f]{3}", name) for name in locks)


def test_novas_lock_is_where_nova_takes_it() -> None:
    # oslo.concurrency: lock_path / (prefix + name)
    assert Path("/instances/locks/nova-abc") == nova_lock(Path("/instances/locks"), prefix="nova-", name="abc")
    with pytest.raises(InvalidName):
        nova_lock(Path("/instances/locks"), prefix="nova-", name="../x")
