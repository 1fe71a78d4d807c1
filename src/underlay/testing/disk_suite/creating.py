"""Cases about making a disk: whole, from its base, of its size, once, and told from any other."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

from underlay.errors import DiskExists, DiskNotFound, DiskTooSmall, FormatMismatch, Unsupported
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
from underlay.values import replace

_AT_ONCE = 4


@case()
def a_disk_holds_the_image_and_zeros_behind_it(scene: Scene) -> None:
    disk = scene.backend.create(scene.image(content(1)), scene.spec(size=8 * MIB))
    expect_equal(scene.rounded(8 * MIB), disk.size, "the size of the disk")
    expect_content(scene, disk, content(1), "the disk")


@case()
def a_disk_without_a_size_has_the_images(scene: Scene) -> None:
    disk = scene.backend.create(scene.image(content(2)), scene.spec())
    expect_equal(scene.rounded(2 * MIB), disk.size, "the size of the disk")
    expect_content(scene, disk, content(2), "the disk")


@case()
def an_image_of_odd_length_becomes_a_disk_of_whole_sectors(scene: Scene) -> None:
    odd = content(3, size=MIB + 777)
    disk = scene.backend.create(scene.image(odd), scene.spec())
    expect_equal(scene.rounded(MIB + 1024), disk.size, "the size of the disk")
    expect_content(scene, disk, odd, "the disk")


@case()
def a_disk_that_is_made_is_described_as_it_was_made(scene: Scene) -> None:
    base, spec = scene.image(content(4)), scene.spec(size=4 * MIB)
    made = scene.backend.create(base, spec)
    found = scene.backend.describe(spec)
    expect_equal(facts(made), facts(found), "the disk")
    traits = scene.backend.traits
    wanted = (spec.instance, spec.name, spec.path, traits.name, traits.disk_format)
    expect_equal(wanted, (found.instance, found.name, found.path, found.backend, found.format), "what the disk is")
    expect_equal((base.name, base.path), (found.base, found.base_path), "what the disk was made from")
    expect(found.allocated >= 0, "a disk occupies no less than nothing")
    expect(scene.backend.exists(spec), "a disk that is there exists")


@case()
def a_disk_that_was_never_made_is_not_there(scene: Scene) -> None:
    spec = scene.spec()
    expect(not scene.backend.exists(spec), "a disk that was never made exists")
    with refused(DiskNotFound):
        scene.backend.describe(spec)


@case()
def each_disk_has_a_place_of_its_own(scene: Scene) -> None:
    asked = [(one, name) for one in ("vm", "vm-1", "vm_1", "vm.1") for name in ("disk", "disk.local", "disk.eph0", "disk_1")]
    places = [scene.backend.place(*pair) for pair in asked]
    if scene.backend.traits.on_host_filesystem:
        expect_equal({None}, set(places), "the places of disks that are files")
        return
    expect(all(place is not None and place.is_absolute() for place in places), "a place is an absolute path")
    expect_equal(len(asked), len(set(places)), "how many places so many disks have")
    expect_equal(places, [scene.backend.place(*pair) for pair in asked], "the places, asked for again")


@case()
def disks_of_one_image_do_not_touch_each_other(scene: Scene) -> None:
    base = scene.image(content(5))
    first, second = (scene.backend.create(base, scene.spec(size=4 * MIB)) for _ in range(2))
    scene.stage.write(first, 0, b"\x01" * 4096)
    scene.stage.write(second, 4096, b"\x02" * 4096)
    expect_content(scene, first, b"\x01" * 4096 + content(5)[4096:], "the first disk")
    expect_content(scene, second, content(5)[:4096] + b"\x02" * 4096 + content(5)[8192:], "the second disk")


@case()
def an_instance_may_have_several_disks(scene: Scene) -> None:
    first = scene.spec()
    second = scene.spec(instance=first.instance, name="disk.local")
    made = [scene.backend.create(scene.image(content(seed)), spec) for seed, spec in ((6, first), (7, second))]
    expect_content(scene, made[0], content(6), "the first disk")
    expect_content(scene, made[1], content(7), "the second disk")


@case()
def a_base_image_is_only_read(scene: Scene) -> None:
    base = scene.image(content(8))
    before = os.stat(base.path)
    disk = scene.backend.create(base, scene.spec(size=4 * MIB))
    scene.stage.write(disk, 0, b"\x05" * 4096)
    after = os.stat(base.path)
    unchanged = [(status.st_ino, status.st_size, status.st_mtime_ns) for status in (before, after)]
    expect_equal(unchanged[0], unchanged[1], "the base image's file")
    expect_equal(content(8), base.path.read_bytes(), "the base image's content")


@case()
def a_disk_that_is_no_overlay_needs_its_base_no_more(scene: Scene) -> None:
    if scene.backend.traits.overlays:
        return
    base = scene.image(content(9))
    disk = scene.backend.create(base, scene.spec(size=4 * MIB))
    base.path.unlink()
    expect_content(scene, disk, content(9), "the disk without its base image")
    expect_equal(facts(disk), facts(scene.backend.describe(scene.specs[disk.path])), "the disk without its base image")


@case()
def an_image_that_is_not_raw_is_read_or_refused(scene: Scene) -> None:
    base, spec = scene.image(content(10), qcow2=True), scene.spec(size=4 * MIB)
    if scene.backend.traits.needs_raw:
        with refused(FormatMismatch):
            scene.backend.create(base, spec)
        expect_nothing(scene, spec, "after an image that it cannot read")
    else:
        expect_content(scene, scene.backend.create(base, spec), content(10), "the disk of a qcow2 image")


@case()
def a_disk_below_the_images_size_is_refused(scene: Scene) -> None:
    base = scene.image(content(11))
    for size in (0, 512, 2 * MIB - 512):
        spec = scene.spec(size=size)
        with refused(DiskTooSmall):
            scene.backend.create(base, spec)
        expect_nothing(scene, spec, "after a size that is too small")


@case()
def a_disk_below_what_the_images_source_allows_is_refused(scene: Scene) -> None:
    base, spec = scene.image(content(12), min_disk=6 * MIB), scene.spec(size=4 * MIB)
    with refused(DiskTooSmall):
        scene.backend.create(base, spec)
    expect_nothing(scene, spec, "after a size below min_disk")


@case()
def the_same_disk_is_there_already(scene: Scene) -> None:
    base, spec = scene.image(content(13)), scene.spec(size=4 * MIB)
    made = scene.backend.create(base, spec)
    scene.stage.write(made, 0, b"\x03" * 4096)
    expect_equal(facts(made), facts(scene.backend.create(base, spec)), "the disk that is asked for again")
    expect_content(scene, made, b"\x03" * 4096 + content(13)[4096:], "the disk that was asked for again")


@case()
def another_disk_of_the_name_is_left_alone(scene: Scene) -> None:
    base, spec = scene.image(content(14)), scene.spec(size=4 * MIB)
    made = scene.backend.create(base, spec)
    for other, size in ((base, 16 * MIB), (scene.image(content(15)), 4 * MIB)):
        with refused(DiskExists):
            scene.backend.create(other, scene.spec(instance=spec.instance, size=size))
    expect_equal(facts(made), facts(scene.backend.describe(spec)), "the disk that another was asked for in the place of")
    expect_content(scene, made, content(14), "the disk that another was asked for in the place of")


@case()
def a_disk_is_given_to_the_maker_that_made_it(scene: Scene) -> None:
    base, spec = scene.image(content(90)), scene.spec(size=8 * MIB, maker="one")
    made = scene.backend.create(base, spec)
    scene.stage.write(made, 0, b"\x05" * 4096)
    expect_equal("one", scene.backend.describe(replace(spec, maker=None)).maker, "who made the disk")
    for again in (spec, replace(spec, maker=None)):
        expect_equal(facts(made), facts(scene.backend.create(base, again)), "the disk that is asked for again")
    with refused(DiskExists):
        scene.backend.create(base, replace(spec, maker="another"))
    expect_content(scene, made, b"\x05" * 4096 + content(90)[4096:], "the disk that another maker asked for")


@case()
def a_disk_that_does_not_say_who_made_it_is_given_to_no_maker(scene: Scene) -> None:
    base, spec = scene.image(content(91)), scene.spec(size=8 * MIB)
    made = scene.backend.create(base, spec)
    expect_equal(None, made.maker, "who made a disk that does not say so")
    with refused(DiskExists):
        scene.backend.create(base, replace(spec, maker="one"))
    expect_equal(facts(made), facts(scene.backend.describe(spec)), "the disk that a maker asked for")
    scene.backend.remove(made)
    expect_nothing(scene, spec, "after the disk was removed")


@case()
def on_shared_storage_a_disk_that_another_has_made_since_stays(scene: Scene) -> None:
    if not scene.backend.traits.shared_storage:
        return
    base, spec = scene.image(content(92)), scene.spec(size=8 * MIB, maker="one")
    made = scene.backend.create(base, spec)
    scene.backend.remove(replace(made, maker="another"))
    expect_content(scene, scene.backend.describe(spec), content(92), "the disk that is not the one that was to go")
    scene.backend.remove(made)
    expect_nothing(scene, spec, "after the disk was removed")


@case()
def a_disk_that_several_ask_for_is_made_once(scene: Scene) -> None:
    base, spec = scene.image(content(16)), scene.spec(size=4 * MIB)
    lock, barrier = Lock(), Barrier(_AT_ONCE)

    def make(_: int) -> object:
        barrier.wait()
        with lock:  # as the host's
            return facts(scene.backend.create(base, spec))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        made = list(pool.map(make, range(_AT_ONCE)))
    expect_equal([made[0]] * _AT_ONCE, made, "what each of them is given")
    expect_content(scene, scene.backend.describe(spec), content(16), "the disk")


@case()
def on_shared_storage_others_who_know_no_lock_do_no_harm(scene: Scene) -> None:
    if not scene.backend.traits.shared_storage:
        return
    base, spec, barrier = scene.image(content(17)), scene.spec(size=4 * MIB), Barrier(_AT_ONCE)

    def make(_: int) -> bool:
        barrier.wait()
        try:
            scene.backend.create(base, spec)
        except DiskExists:
            return False
        return True

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        expect(any(pool.map(make, range(_AT_ONCE))), "of several that make one disk at once, none does")
    expect_content(scene, scene.backend.create(base, spec), content(17), "the disk")


@case()
def several_disks_may_be_made_at_once(scene: Scene) -> None:
    base = scene.image(content(18))
    specs = [scene.spec(size=4 * MIB) for _ in range(_AT_ONCE)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for disk in pool.map(lambda spec: scene.backend.create(base, spec), specs):
            expect_content(scene, disk, content(18), "a disk that was made beside others")


@case()
def a_disk_is_encrypted_or_refused(scene: Scene) -> None:
    key = bytes(range(32, 64)) * 2
    base, spec = scene.image(content(19)), scene.spec(size=8 * MIB, key=key)
    if not scene.backend.traits.encrypts:
        with refused(Unsupported):
            scene.backend.create(base, spec)
        expect_nothing(scene, spec, "after a key that it has no use for")
        return
    disk = scene.backend.create(base, spec)
    expect_content(scene, disk, content(19), "the encrypted disk")
    expect_equal(facts(disk), facts(scene.backend.create(base, spec)), "the encrypted disk, asked for again")
    expect(key.hex() not in repr(spec) and repr(key) not in repr(spec), "the key is in a repr")


CASES: tuple[Case, ...] = (
    a_disk_holds_the_image_and_zeros_behind_it,
    a_disk_without_a_size_has_the_images,
    an_image_of_odd_length_becomes_a_disk_of_whole_sectors,
    a_disk_that_is_made_is_described_as_it_was_made,
    a_disk_that_was_never_made_is_not_there,
    each_disk_has_a_place_of_its_own,
    disks_of_one_image_do_not_touch_each_other,
    an_instance_may_have_several_disks,
    a_base_image_is_only_read,
    a_disk_that_is_no_overlay_needs_its_base_no_more,
    an_image_that_is_not_raw_is_read_or_refused,
    a_disk_below_the_images_size_is_refused,
    a_disk_below_what_the_images_source_allows_is_refused,
    the_same_disk_is_there_already,
    another_disk_of_the_name_is_left_alone,
    a_disk_is_given_to_the_maker_that_made_it,
    a_disk_that_does_not_say_who_made_it_is_given_to_no_maker,
    on_shared_storage_a_disk_that_another_has_made_since_stays,
    a_disk_that_several_ask_for_is_made_once,
    on_shared_storage_others_who_know_no_lock_do_no_harm,
    several_disks_may_be_made_at_once,
    a_disk_is_encrypted_or_refused,
)
