"""Cases about what a storage makes by itself: clones of its images, and lasting images of its disks."""

from underlay.errors import DiskExists, DiskInUse, DiskTooSmall, Unsupported
from underlay.model import DiskSpec, ImageVersion
from underlay.refs import parse_ref
from underlay.testing.disk_suite.case import (
    MIB,
    Case,
    Scene,
    case,
    content,
    expect,
    expect_content,
    expect_equal,
    expect_nothing,
    facts,
    refused,
)
from underlay.testing.disk_suite.stage import Cloned
from underlay.values import replace


@case()
def an_image_that_is_elsewhere_is_not_cloned(scene: Scene) -> None:
    for locations in ((), ("https://example.org/image",), ("rbd://00000000-0000-0000-0000-000000000000/pool/image/snap",)):
        spec = scene.spec(size=4 * MIB)
        version = ImageVersion(
            ref=parse_ref("https://example.org/image"), id="elsewhere", disk_format="raw", locations=locations
        )
        with refused(Unsupported):
            scene.backend.clone(version, spec)
        expect_nothing(scene, spec, "after an image that cannot be cloned")


@case(Cloned)
def a_clone_holds_the_image(scene: Scene) -> None:
    version, spec = scene.stage.cloneable(content(40)), scene.spec(size=8 * MIB)
    cloned = scene.backend.clone(version, spec)
    expect_equal((scene.rounded(8 * MIB), None, None), (cloned.size, cloned.base, cloned.base_path), "the clone")
    expect(cloned.parent, "a clone says what it reads from")
    expect_equal(facts(cloned), facts(scene.backend.describe(spec)), "the clone")
    expect_content(scene, cloned, content(40), "the clone")
    scene.stage.write(cloned, 0, b"\x04" * 4096)
    another = scene.backend.clone(version, scene.spec())
    expect_content(scene, another, content(40), "another clone of the image")


@case(Cloned)
def the_same_clone_is_there_already(scene: Scene) -> None:
    version, spec = scene.stage.cloneable(content(41)), scene.spec(size=8 * MIB)
    cloned = scene.backend.clone(version, spec)
    scene.stage.write(cloned, 0, b"\x04" * 4096)
    expect_equal(facts(cloned), facts(scene.backend.clone(version, spec)), "the clone that is asked for again")
    for other, size in ((version, 16 * MIB), (scene.stage.cloneable(content(42)), 8 * MIB)):
        with refused(DiskExists):
            scene.backend.clone(other, replace(spec, size=size))
    expect_content(scene, cloned, b"\x04" * 4096 + content(41)[4096:], "the clone that was asked for again")


@case(Cloned)
def a_clone_is_given_to_the_maker_that_made_it(scene: Scene) -> None:
    version, spec = scene.stage.cloneable(content(94)), scene.spec(size=8 * MIB, maker="one")
    cloned = scene.backend.clone(version, spec)
    for again in (spec, replace(spec, maker=None)):
        expect_equal(facts(cloned), facts(scene.backend.clone(version, again)), "the clone that is asked for again")
    with refused(DiskExists):
        scene.backend.clone(version, replace(spec, maker="another"))
    expect_equal("one", scene.backend.describe(spec).maker, "who made the clone")


@case(Cloned)
def a_clone_below_the_images_size_is_refused(scene: Scene) -> None:
    version, spec = scene.stage.cloneable(content(43)), scene.spec(size=MIB)
    with refused(DiskTooSmall):
        scene.backend.clone(version, spec)
    expect_no_disk(scene, spec, "after a size that is too small")
    spec = scene.spec(size=4 * MIB)
    with refused(DiskTooSmall):
        scene.backend.clone(replace(version, min_disk=6 * MIB), spec)
    expect_no_disk(scene, spec, "after a size below min_disk")


@case(Cloned)
def a_flattened_clone_has_no_parent(scene: Scene) -> None:
    version, spec = scene.stage.cloneable(content(44)), scene.spec(size=8 * MIB)
    flattened = scene.backend.flatten(scene.backend.clone(version, spec))
    expect_equal(None, flattened.parent, "the parent of a flattened clone")
    expect_equal(facts(flattened), facts(scene.backend.describe(spec)), "the flattened clone")
    expect_content(scene, flattened, content(44), "the flattened clone")


@case(Cloned)
def a_clone_goes_alone(scene: Scene) -> None:
    version, spec = scene.stage.cloneable(content(45)), scene.spec()
    first, second = scene.backend.clone(version, spec), scene.backend.clone(version, scene.spec())
    scene.backend.remove(first)
    expect_no_disk(scene, spec, "after a clone was removed")
    expect_content(scene, second, content(45), "the clone that stayed")


@case()
def a_snapshot_is_an_image_that_disks_are_cloned_from(scene: Scene) -> None:
    traits = scene.backend.traits
    if not traits.snapshots:
        return
    disk = scene.disk(content(46), size=4 * MIB)
    name = f"snap-{disk.instance}"
    location = scene.backend.snapshot(disk, name)
    with refused(DiskExists):
        scene.backend.snapshot(disk, name)
    scene.stage.write(disk, 0, b"\x09" * 4096)
    if traits.clones:
        version = ImageVersion(ref=parse_ref("https://example.org/snapshot"), id=name, disk_format="raw", locations=(location,))
        cloned = scene.backend.clone(version, scene.spec())
        expect_content(scene, cloned, content(46), "the clone of a snapshot")
        with refused(DiskInUse):
            scene.backend.discard_snapshot(location)
        scene.backend.remove(cloned)
    scene.backend.discard_snapshot(location)
    scene.backend.discard_snapshot(location)
    scene.backend.remove(disk)
    expect_equal(frozenset(), scene.left(), "what is left of a disk and its snapshot")


def expect_no_disk(scene: Scene, spec: DiskSpec, what: str) -> None:
    """There is no such disk; the image that it was to be cloned from stays."""
    expect(not scene.backend.exists(spec), f"{what}: something has the disk's place")
    expect(not any(spec.instance in name for name in scene.left()), f"{what}: something is left of it")


CASES: tuple[Case, ...] = (
    an_image_that_is_elsewhere_is_not_cloned,
    a_clone_holds_the_image,
    the_same_clone_is_there_already,
    a_clone_is_given_to_the_maker_that_made_it,
    a_clone_below_the_images_size_is_refused,
    a_flattened_clone_has_no_parent,
    a_clone_goes_alone,
    a_snapshot_is_an_image_that_disks_are_cloned_from,
)
