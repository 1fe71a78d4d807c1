"""Cases about a disk that is there: grown, flattened, put on another base, written out, removed, told to a hypervisor."""

from underlay import qemuimg
from underlay.errors import DiskNotFound, ShrinkRefused, UnderlayError, Unsupported
from underlay.model import Extraction
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
from underlay.testing.disk_suite.stage import Opened

_RAW = Extraction(format="raw")
_WRITTEN = b"\x07" * 4096


@case()
def a_disk_grows_and_keeps_its_content(scene: Scene) -> None:
    disk = scene.disk(content(20), size=4 * MIB)
    if not scene.backend.traits.resizable:
        with refused(Unsupported):
            scene.backend.resize(disk, 12 * MIB)
    else:
        grown = scene.backend.resize(disk, 12 * MIB)
        expect_equal(scene.rounded(12 * MIB), grown.size, "the size of the disk that has grown")
        expect_equal(facts(grown), facts(scene.backend.describe(scene.specs[disk.path])), "the disk that has grown")
        disk = grown
    expect_content(scene, disk, content(20), "the disk that was to grow")


@case()
def a_disk_that_changes_says_who_made_it_still(scene: Scene) -> None:
    spec = scene.spec(size=4 * MIB, maker="one")
    disk = scene.backend.create(scene.image(content(93)), spec)
    if scene.backend.traits.resizable:
        disk = scene.backend.resize(disk, 8 * MIB)
    flattened = scene.backend.flatten(disk)
    expect_equal(["one"] * 2, [flattened.maker, scene.backend.describe(spec).maker], "who made the disk that has changed")


@case()
def a_disk_that_has_its_size_already_is_a_success(scene: Scene) -> None:
    disk = scene.disk(content(21), size=4 * MIB)
    if scene.backend.traits.resizable and disk.size is not None:
        expect_equal(facts(disk), facts(scene.backend.resize(disk, disk.size)), "the disk that has its size already")


@case()
def a_disk_is_never_made_smaller(scene: Scene) -> None:
    disk = scene.disk(content(22), size=16 * MIB)
    for size in (0, MIB, 8 * MIB):
        with refused(ShrinkRefused, Unsupported):
            scene.backend.resize(disk, size)
    expect_content(scene, disk, content(22), "the disk that was to be made smaller")


@case()
def what_a_guest_writes_is_never_taken_for_a_header(scene: Scene) -> None:
    traits = scene.backend.traits
    if traits.disk_format != "raw":
        return
    disk = scene.disk(content(23), size=4 * MIB)
    secret = scene.stage.directory / "secret"
    secret.write_bytes(b"of the host" * 1000)
    header = _overlay_on(scene, secret)
    scene.stage.write(disk, 0, header)
    expected = header + content(23)[len(header) :]
    found = scene.backend.describe(scene.specs[disk.path])
    expect_equal(facts(disk), facts(found), "the disk that its guest wrote a header onto")
    if traits.resizable:
        found = scene.backend.resize(found, 8 * MIB)
    expect_equal("raw", scene.backend.attachment(found).format, "the format that a hypervisor is told")
    expect_content(scene, found, expected, "the disk that its guest wrote a header onto")
    for want in (_RAW, Extraction(format="qcow2")):
        expect_extracted(scene, scene.extracted(found, want), want, expected, size=found.size)
    secret.unlink()


def _overlay_on(scene: Scene, backing: object) -> bytes:
    made = scene.stage.directory / "evil"
    qemuimg.create_overlay(made.absolute(), backing=str(backing), backing_format="raw", size=4 * MIB)
    header = made.read_bytes()[: 256 << 10]
    made.unlink()
    return header


@case()
def a_disk_is_extracted_whole(scene: Scene) -> None:
    disk = scene.disk(content(24), size=4 * MIB)
    scene.stage.write(disk, 0, _WRITTEN)
    expected, before = _WRITTEN + content(24)[4096:], facts(disk)
    for want in (_RAW, Extraction(format="qcow2"), Extraction(format="qcow2", compressed=True)):
        expect_extracted(scene, scene.extracted(disk, want), want, expected, size=disk.size)
    expect_equal(before, facts(scene.backend.describe(scene.specs[disk.path])), "the disk that was extracted")
    expect_content(scene, disk, expected, "the disk that was extracted")


def expect_extracted(scene: Scene, target: object, want: Extraction, expected: bytes, *, size: int | None) -> None:
    """A file has a disk's content in the wanted format, and needs no other file."""
    file = scene.stage.directory / str(target)
    info = qemuimg.info(file.absolute(), format=want.format)
    expect_equal(size, info.virtual_size, "the virtual size of the extracted file")
    expect((info.backing, info.data_file) == (None, None), "the extracted file needs another one")
    raw = file.with_name(f"{file.name}.raw")
    qemuimg.convert(qemuimg.node(file.absolute(), format=want.format), raw.absolute(), format="raw")
    expect_equal(expected, raw.read_bytes()[: len(expected)], f"the content of the extracted {want.format} file")
    raw.unlink()
    file.unlink()


@case()
def a_flattened_disk_needs_no_other_file(scene: Scene) -> None:
    base = scene.image(content(25))
    disk = scene.backend.create(base, scene.spec(size=4 * MIB))
    scene.stage.write(disk, 0, _WRITTEN)
    flattened = scene.backend.flatten(disk)
    base.path.unlink()
    expected = _WRITTEN + content(25)[4096:]
    expect_content(scene, flattened, expected, "the flattened disk")
    expect_equal(facts(flattened), facts(scene.backend.flatten(flattened)), "the disk that was flattened already")
    expect_content(scene, flattened, expected, "the disk that was flattened already")
    expect_equal(disk.size, flattened.size, "the size of the flattened disk")


@case()
def a_rebased_disk_reads_as_before(scene: Scene) -> None:
    old, new = scene.image(content(26)), scene.image(content(27, size=3 * MIB))
    disk = scene.backend.create(old, scene.spec(size=4 * MIB))
    scene.stage.write(disk, 0, _WRITTEN)
    expected = _WRITTEN + content(26)[4096:]
    if not scene.backend.traits.rebases:
        with refused(Unsupported):
            scene.backend.rebase(disk, new)
        expect_content(scene, disk, expected, "the disk that cannot be rebased")
        return
    rebased = scene.backend.rebase(disk, new)
    old.path.unlink()
    expect_equal((new.name, new.path), (rebased.base, rebased.base_path), "what the rebased disk is based on")
    expect_content(scene, rebased, expected, "the rebased disk")
    again = scene.backend.rebase(rebased, new)
    expect_equal(facts(rebased), facts(again), "the disk that was rebased already")
    expect_content(scene, again, expected, "the disk that was rebased already")


@case()
def a_disk_goes_without_leaving_anything(scene: Scene) -> None:
    base, spec = scene.image(content(28)), scene.spec(size=4 * MIB)
    disk = scene.backend.create(base, spec)
    scene.backend.remove(disk)
    expect_nothing(scene, spec, "after a disk was removed")
    expect_equal(content(28), base.path.read_bytes(), "the base image of a disk that was removed")
    scene.backend.remove(disk)
    made = scene.backend.create(base, spec)
    expect_content(scene, made, content(28), "the disk that was made again")


@case()
def a_disk_goes_alone(scene: Scene) -> None:
    base = scene.image(content(29))
    first, second = (scene.backend.create(base, scene.spec(size=4 * MIB)) for _ in range(2))
    scene.backend.remove(first)
    expect_content(scene, second, content(29), "the disk that stayed")


@case()
def a_disk_that_has_vanished_is_not_found(scene: Scene) -> None:
    disk = scene.disk(content(30), size=4 * MIB)
    scene.backend.remove(disk)
    target = scene.stage.directory / "extracted"
    for touch in (
        lambda: scene.backend.describe(scene.specs[disk.path]),
        lambda: scene.backend.resize(disk, 8 * MIB),
        lambda: scene.backend.extract(disk, target, _RAW),
    ):
        with refused(DiskNotFound, Unsupported):
            touch()


@case()
def a_hypervisor_is_told_the_disks_format_and_its_place(scene: Scene) -> None:
    disk = scene.disk(content(31), size=4 * MIB)
    told = scene.backend.attachment(disk)
    expect(told.type in ("file", "block", "network"), f"libvirt knows no disks of type {told.type!r}")
    expect(told.source, "a hypervisor is told where the disk is")
    expect((told.protocol is not None) == (told.type == "network"), "a network disk has a protocol, and no other has")
    if scene.backend.traits.on_host_filesystem:
        expect(told.source.startswith(str(disk.path)), "a disk that is a file is opened by its path")


@case(Opened)
def a_disk_that_a_guest_has_open_is_seen_to_be(scene: Scene) -> None:
    disk = scene.disk(content(32), size=4 * MIB)
    if scene.backend.traits.on_host_filesystem:
        return  # the host finds out
    expect(scene.backend.is_open(disk) is False, "a disk that nobody has open is said to be open, or not known")
    with scene.stage.opened(disk):
        expect(scene.backend.is_open(disk) is True, "a disk that somebody has open is not said to be")


@case()
def what_a_backend_cannot_changes_nothing(scene: Scene) -> None:
    disk, traits = scene.disk(content(33), size=4 * MIB), scene.backend.traits
    if not traits.snapshots:
        with refused(Unsupported):
            scene.backend.snapshot(disk, "snapshot")
        with refused(Unsupported):
            scene.backend.discard_snapshot("rbd://nowhere/pool/image/snapshot")
    expect_content(scene, disk, content(33), "the disk after what cannot be done")


@case()
def errors_are_of_the_tree_and_name_the_disk(scene: Scene) -> None:
    spec = scene.spec()
    try:
        scene.backend.describe(spec)
    except UnderlayError as error:
        named = any(text in error.message for text in (str(spec.path), spec.instance, spec.path.name))
        expect(named, f"the error does not name the disk: {error.message}")


CASES: tuple[Case, ...] = (
    a_disk_grows_and_keeps_its_content,
    a_disk_that_changes_says_who_made_it_still,
    a_disk_that_has_its_size_already_is_a_success,
    a_disk_is_never_made_smaller,
    what_a_guest_writes_is_never_taken_for_a_header,
    a_disk_is_extracted_whole,
    a_flattened_disk_needs_no_other_file,
    a_rebased_disk_reads_as_before,
    a_disk_goes_without_leaving_anything,
    a_disk_goes_alone,
    a_disk_that_has_vanished_is_not_found,
    a_hypervisor_is_told_the_disks_format_and_its_place,
    a_disk_that_a_guest_has_open_is_seen_to_be,
    what_a_backend_cannot_changes_nothing,
    errors_are_of_the_tree_and_name_the_disk,
)
