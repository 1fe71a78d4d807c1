"""Clones on a real Ceph, of both of its kinds: from what a disk is cloned and why not, and what reads from what."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ceph_stage import CONTENT, RbdStage, backend_of, base_image, located, of_disk, pool_of, spec_at, spec_of

from underlay.errors import DiskInUse, DiskNotFound, Unsupported
from underlay.model import Signature
from underlay.values import replace

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]


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


def test_a_snapshot_that_would_have_to_be_protected_and_may_not_be_is_a_reason(stage: RbdStage) -> None:
    stage.ceph.add_user("nova", mon="profile rbd", osd="profile rbd pool=rbd, profile rbd-read-only pool=images")
    version, stage = stage.cloneable(CONTENT), replace(stage, clone_format="1")
    stage.ceph.rbd("snap", "unprotect", f"images/{version.id}@snap")
    backend, spec = stage.backend_on("node1", user="nova"), spec_of(stage)

    with pytest.raises(Unsupported, match=r"client\.nova"):
        backend.clone(version, spec)

    assert set() == of_disk(stage, spec)
    another = stage.cloneable(CONTENT)
    several = located(version, version.locations[1], another.locations[1])
    assert another.locations[1].split("/")[4] in str(backend.clone(several, spec).parent), "another location would do"


def test_an_image_that_nothing_can_be_cloned_from_is_a_reason(stage: RbdStage) -> None:
    name, spec = f"flat-{uuid4()}", spec_of(stage)
    stage.ceph.rbd("create", "--size=8M", "--image-feature=exclusive-lock", f"images/{name}")
    stage.ceph.rbd("snap", "create", "--no-progress", f"images/{name}@snap")

    with pytest.raises(Unsupported, match="failed on image"):
        stage.backend.clone(located(stage.cloneable(CONTENT), f"rbd://{stage.ceph.fsid}/images/{name}/snap"), spec)

    assert set() == of_disk(stage, spec)


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
    disk = stage.backend.create(base_image(tmp_path, CONTENT), spec_of(stage))
    location = stage.backend.snapshot(disk, f"snap-{disk.instance}")
    child = stage.backend.clone(replace(stage.cloneable(b"x"), locations=(location,)), spec_of(stage))
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().trash_move(pool, child.path.name, 3600)
        with pytest.raises(DiskInUse, match=child.path.name):
            stage.backend.discard_snapshot(location)
        (trashed,) = (one for one in rbd.RBD().trash_list(pool) if one["name"] == child.path.name)
        rbd.RBD().trash_restore(pool, trashed["id"], child.path.name)
        rbd.RBD().trash_move(pool, child.path.name, 0)

    stage.backend.discard_snapshot(location)

    stage.backend.remove(disk)
    assert set() == of_disk(stage, spec_at(disk)) | of_disk(stage, spec_at(child))


def test_only_snapshots_that_it_made_are_discarded(stage: RbdStage) -> None:
    (_, location) = stage.cloneable(CONTENT).locations

    with pytest.raises(Unsupported, match="no snapshot that it made"):
        stage.backend.discard_snapshot(location)


def test_a_disk_made_from_a_snapshot_is_none(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    location = stage.backend.snapshot(disk, f"kept-{disk.instance}")
    child = stage.backend.clone(located(stage.cloneable(b"x"), location), spec_of(stage))

    for snapshot in ("snap", "another"):
        with pytest.raises(Unsupported, match="no snapshot that it made"):
            stage.backend.discard_snapshot(f"rbd://{stage.ceph.fsid}/rbd/{child.path.name}/{snapshot}")
    with pytest.raises(Unsupported, match="no snapshot that it made"):
        stage.backend.discard_snapshot(f"{location}shot")

    assert child == stage.backend.describe(spec_at(child))
    assert b"underlay.snapshot" not in stage.ceph.rbd("image-meta", "list", f"rbd/{child.path.name}")
    stage.backend.remove(child)
    stage.backend.discard_snapshot(location)


# ------------------------------------------------------------------------------------------------------- what is needed


@pytest.fixture(params=["1", "2"])
def either(request: pytest.FixtureRequest, stage: RbdStage) -> RbdStage:
    """Clones of the older kind, and of the newer."""
    return replace(stage, clone_format=request.param)


def test_a_disk_that_another_reads_from_stays_until_that_is_gone(either: RbdStage) -> None:
    disk, name = either.backend.clone(either.cloneable(CONTENT), spec_of(either)), f"other-{uuid4()}"
    kind = f"--rbd-default-clone-format={either.clone_format}"
    either.ceph.rbd("snap", "create", "--no-progress", f"rbd/{disk.path.name}@mine")
    either.ceph.rbd("snap", "protect", f"rbd/{disk.path.name}@mine")
    either.ceph.rbd("clone", kind, f"rbd/{disk.path.name}@mine", f"other/{name}")
    if either.clone_format == "2":  # then the snapshot can go, and is kept for the clone
        either.ceph.rbd("snap", "unprotect", f"rbd/{disk.path.name}@mine")
        either.ceph.rbd("snap", "rm", "--no-progress", f"rbd/{disk.path.name}@mine")

    with pytest.raises(DiskInUse, match=f"@mine is read by other/{name}"):
        either.backend.remove(disk)

    assert disk == either.backend.describe(spec_at(disk))
    either.ceph.rbd("rm", "--no-progress", f"other/{name}")
    if either.clone_format == "1":
        either.ceph.rbd("snap", "unprotect", f"rbd/{disk.path.name}@mine")
        either.ceph.rbd("snap", "rm", "--no-progress", f"rbd/{disk.path.name}@mine")
    either.backend.remove(disk)
    assert set() == of_disk(either, spec_at(disk))


def test_a_snapshot_stays_while_disks_read_from_it(either: RbdStage) -> None:
    disk = either.backend.clone(either.cloneable(CONTENT), spec_of(either))
    location = either.backend.snapshot(disk, f"kept-{disk.instance}")
    child = either.backend.clone(located(either.cloneable(b"x"), location), spec_of(either))

    with pytest.raises(DiskInUse, match=f"is read by rbd/{child.path.name}"):
        either.backend.discard_snapshot(location)

    either.backend.remove(child)
    either.backend.discard_snapshot(location)
    assert {disk.path.name} == of_disk(either, spec_at(disk))
    either.backend.remove(disk)


def test_what_is_in_the_trash_is_purged_only_when_the_removal_is_not_refused(either: RbdStage) -> None:
    disk = either.backend.clone(either.cloneable(CONTENT), spec_of(either))
    location = either.backend.snapshot(disk, f"kept-{disk.instance}")
    trashed, kept = (either.backend.clone(located(either.cloneable(b"x"), location), spec_of(either)) for _ in range(2))
    foreign = f"foreign-{uuid4()}"
    either.ceph.rbd("clone", f"rbd/kept-{disk.instance}@snap", f"rbd/{foreign}")
    either.ceph.rbd("image-meta", "remove", f"rbd/{foreign}", "underlay.snapshot")
    with pool_of(either.ceph, either.pool) as (rbd, pool):
        for name in (trashed.path.name, foreign):
            rbd.RBD().trash_move(pool, name, 0)

        for reads in (f"rbd/{kept.path.name}", f"rbd/{foreign}"):
            with pytest.raises(DiskInUse, match=reads):
                either.backend.discard_snapshot(location)
            assert {trashed.path.name, foreign} <= {one["name"] for one in rbd.RBD().trash_list(pool)}
            with suppress(DiskNotFound):
                either.backend.remove(kept)
        (ours,) = (one for one in rbd.RBD().trash_list(pool) if one["name"] == foreign)
        rbd.RBD().trash_remove(pool, ours["id"])

    either.backend.discard_snapshot(location)

    assert set() == of_disk(either, spec_at(trashed))


def test_a_mirrored_disk_can_be_removed(stage: RbdStage) -> None:
    pool = stage.ceph.make_pool(f"mirrored-{uuid4().hex[:8]}")
    stage.ceph.rbd("mirror", "pool", "enable", pool, "image")
    mirrored = replace(stage, pool=pool)
    disk = mirrored.backend.flatten(mirrored.backend.clone(stage.cloneable(CONTENT), spec_of(mirrored)))
    stage.ceph.rbd("mirror", "image", "enable", f"{pool}/{disk.path.name}", "snapshot")
    assert disk == mirrored.backend.describe(spec_at(disk))

    mirrored.backend.remove(disk)

    assert set() == of_disk(mirrored, spec_at(disk))
