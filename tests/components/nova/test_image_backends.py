"""Nova's image backends beside ours, within the real Nova: the same calls make the same disks, and its faults are not ours."""

import inspect
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
from nova_environment import image_backends

import corpus
from installed import install_backend
from machine import GIB, MIB
from underlay.files import ATTRIBUTE
from underlay.openstack.nova import Backend, Image, fetches

pytestmark = pytest.mark.component("nova", "qemu-img")

UUID = "7a3f1d4e-0001-4c1c-9e50-1d2f00000001"
IMAGE, KERNEL = "70a599e0-31e7-49b7-b260-868f441e862b", "70a599e0-31e7-49b7-b260-000000000002"
BASE, KERNEL_BASE = (sha1(one.encode(), usedforsecurity=False).hexdigest() for one in (IMAGE, KERNEL))
WHOSE = ("nova", "underlay")
MAPPING = {"bus": "virtio", "dev": "vda", "type": "disk"}
FUNCTIONS = {"images": ["fetch", "fetch_to_raw"], "utils": ["fetch_raw_image"]}
# What Nova's image does for itself.
ITS_OWN = {"correct_format", "resolve_driver_format", "disk_scsi", "disk_qos"}
FETCH = {"do": "cache", "disk": "disk", "with": "fetch_image", "filename": BASE, "image_id": IMAGE, "size": 4 * MIB}


@pytest.fixture(scope="module")
def nova() -> Iterator[Any]:
    """A process with Nova in it."""
    with image_backends() as one:
        yield one


@dataclass(frozen=True)
class Side:
    """One of the two, on a directory of its own."""

    nova: Any
    whose: str
    root: Path
    glance: Mapping[str, Any]
    parts: tuple[str, ...] = ("nova.virt.images", "nova.virt.libvirt.imagebackend")

    def do(self, *steps: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The answer to some steps; a path that begins with ``$`` lies below the instances path."""
        said = json.loads(json.dumps(steps).replace('"$/', f'"{self.root}/'))
        named = {name.replace("__", "."): value for name, value in options.items()}
        what = {"whose": self.whose, "parts": self.parts, "glance": self.glance}
        answer: dict[str, Any] = self.nova.ask(uuid=UUID, instances_path=str(self.root), steps=said, options=named, **what)
        return answer

    def one(self, step: Mapping[str, Any], **options: Any) -> Any:
        """What one step gives, or the name of its error."""
        [outcome] = self.do(step, **options)["steps"]
        return outcome["error"] or plain(outcome["value"], self.root)

    def files(self) -> dict[str, Any]:
        """What is on disk but for our own directory and Nova's locks: of each file its format, sizes and backing file."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = os.fspath(path.relative_to(self.root))
            if path.is_file() and not name.startswith(("_base/.underlay", "locks/")):
                found[name] = (
                    plain(json.loads(path.read_text()), self.root) if path.name == "disk.info" else shape(path, self.root)
                )
        return found


def plain(value: Any, root: Path) -> Any:
    """The same on both sides: without the directory."""
    return json.loads(json.dumps(value).replace(str(root), "$"))


def probed(path: Path) -> str:
    """The format that a file begins as."""
    with path.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


def shape(path: Path, root: Path) -> tuple[Any, ...]:
    output = subprocess.run(
        ["qemu-img", "info", "-U", "-f", probed(path), "--output=json", path], check=True, capture_output=True
    ).stdout
    told = plain(json.loads(output), root)
    return (
        told["format"],
        told["virtual-size"],
        told.get("backing-filename"),
        told.get("backing-filename-format"),
        told.get("cluster-size"),
        oct(path.stat().st_mode),
    )


@pytest.fixture
def sides(nova: Any, tmp_path: Path) -> list[Side]:
    """Nova's side and ours, with the same images in Glance."""
    glance = {
        IMAGE: in_glance(corpus.raw(tmp_path / "image", 2 * MIB, [(0, corpus.noise(MIB))]), "raw"),
        KERNEL: in_glance(corpus.raw(tmp_path / "kernel", MIB, [(0, corpus.noise(MIB, seed=1))]), "aki"),
    }
    made = []
    for whose in WHOSE:
        root = tmp_path / whose
        (root / UUID).mkdir(parents=True)
        made.append(Side(nova, whose, root, glance))
    return made


def in_glance(path: Path, disk_format: str, **more: Any) -> dict[str, Any]:
    return {"file": str(path), "disk_format": disk_format, "size": path.stat().st_size, **more}


def contents(side: Side, name: str, scratch: Path) -> bytes:
    """What a guest sees on a disk."""
    disk = side.root / UUID / name
    return corpus.to_raw(disk, scratch / f"{side.whose}-{name}", probed(disk)).read_bytes()


# ----------------------------------------------------------------------------------------------- the same calls, the same disks


@pytest.mark.parametrize(
    ("images_type", "use_cow"), [("default", True), ("default", False), ("qcow2", False), ("raw", True), ("flat", True)]
)
@pytest.mark.parametrize("size", [None, 4 * MIB])
def test_the_disk_of_an_image_is_the_same(
    sides: list[Side],
    tmp_path: Path,
    images_type: str,
    use_cow: bool,  # noqa: FBT001
    size: int | None,
) -> None:
    answers = [side.do(FETCH | {"size": size}, libvirt__images_type=images_type, use_cow_images=use_cow) for side in sides]
    assert [None, None] == [answer["steps"][0]["error"] for answer in answers]
    assert [[IMAGE], [IMAGE]] == [answer["fetched"] for answer in answers]
    files = [side.files() for side in sides]
    assert files[0] == files[1]
    assert {f"_base/{BASE}", f"{UUID}/disk", f"{UUID}/disk.info"} == files[0].keys()
    assert len({contents(side, "disk", tmp_path) for side in sides}) == 1


def test_every_disk_that_nova_s_driver_makes_of_an_instance_is_the_same(sides: list[Side]) -> None:
    step = {"do": "spawn", "image_id": IMAGE, "kernel_id": KERNEL, "root_gb": 1, "ephemeral_gb": 1, "swap_mb": 8}
    for images_type in ("qcow2", "raw"):
        files, answers = [], []
        for side in sides:
            other = Side(side.nova, side.whose, side.root.with_name(f"{side.whose}-{images_type}"), side.glance)
            other.root.mkdir()
            answers.append(other.do(step, libvirt__images_type=images_type))
            files.append({name: shape for name, shape in other.files().items() if not name.endswith("disk.info")})
        assert [None, None] == [answer["steps"][0]["error"] for answer in answers], answers
        assert [[KERNEL, IMAGE]] * 2 == [answer["fetched"] for answer in answers]
        assert files[0] == files[1]
        assert {"disk", "disk.local", "disk.swap", "kernel"} == {
            name.partition("/")[2] for name in files[0] if name.startswith(UUID)
        }


@pytest.mark.parametrize("part", ["nova.virt.images", "nova.virt.libvirt.imagebackend"])
@pytest.mark.parametrize("images_type", ["qcow2", "raw"])
def test_each_part_works_with_nova_s_own_others(sides: list[Side], part: str, images_type: str) -> None:
    """Nova's own backends hold the lock of an image while they have it fetched."""
    sides = [replace(side, parts=(part,)) for side in sides]
    spawn = {"do": "spawn", "image_id": IMAGE, "kernel_id": KERNEL, "root_gb": 1, "ephemeral_gb": 1, "swap_mb": 8}
    precaches = [{"do": "precache", "image_id": one} for one in (KERNEL, IMAGE)]
    steps: list[Mapping[str, Any]] = [spawn, FETCH | {"disk": "disk.rescue"}, *precaches]
    for side in sides:
        (side.root / UUID).rmdir()
    answers = [side.do(*steps, libvirt__images_type=images_type) for side in sides]
    assert [[None] * 4] * 2 == [[outcome["error"] for outcome in answer["steps"]] for answer in answers], answers
    assert [[KERNEL, IMAGE]] * 2 == [answer["fetched"] for answer in answers]
    files = [{name: shape for name, shape in side.files().items() if not name.endswith("disk.info")} for side in sides]
    assert files[0] == files[1]


def test_an_image_that_glance_has_lost_is_copied_from_another_host(sides: list[Side], tmp_path: Path) -> None:
    lost, host = "70a599e0-31e7-49b7-b260-00000000dead", tmp_path / "other-host"
    host.mkdir()
    (host / BASE).write_bytes(corpus.noise(2 * MIB))
    step = {"do": "fallback", "disk": "disk", "filename": BASE, "image_id": lost, "size": 4 * MIB, "host": str(host)}
    assert [None, None] == [side.one(step) for side in sides]
    assert sides[0].files() == sides[1].files()
    assert len({contents(side, "disk", tmp_path) for side in sides}) == 1


def test_asked_again_nothing_is_fetched_and_disks_grow_alike(sides: list[Side]) -> None:
    steps = [FETCH | {"size": size} for size in (2 * MIB, 8 * MIB, 4 * MIB)]
    steps += [step | {"disk": "disk.rescue", "size": None} for step in steps[:1]]
    steps.append({"do": "resize", "disk": "disk", "size": 16 * MIB})
    for images_type in ("qcow2", "raw"):
        answers = [side.do(*steps, libvirt__images_type=images_type) for side in sides]
        assert [[None] * 5] * 2 == [[outcome["error"] for outcome in answer["steps"]] for answer in answers]
        assert answers[0]["fetched"] == answers[1]["fetched"]
        assert sides[0].files() == sides[1].files()
        for side in sides:
            for name in os.listdir(side.root / UUID):
                (side.root / UUID / name).unlink()


@pytest.mark.parametrize(
    ("disk_format", "force_raw"),
    [("qcow2", True), ("qcow2", False), ("vmdk", True), ("vdi", True), ("vhdx", True), ("iso", True), ("iso", False)],
)
def test_an_image_of_another_format_is_kept_in_the_same_form(
    sides: list[Side],
    tmp_path: Path,
    disk_format: str,
    force_raw: bool,  # noqa: FBT001
) -> None:
    if disk_format == "iso":
        path = tmp_path / "iso"
        path.write_bytes(corpus.iso_disk())
    else:
        path = corpus.convert(Path(sides[0].glance[IMAGE]["file"]), tmp_path / disk_format, disk_format)
    sides = [Side(side.nova, side.whose, side.root, {IMAGE: in_glance(path, disk_format)}) for side in sides]
    assert [None, None] == [side.one(FETCH | {"size": 8 * MIB}, force_raw_images=force_raw) for side in sides]
    assert sides[0].files() == sides[1].files()
    assert len({contents(side, "disk", tmp_path) for side in sides}) == 1


@pytest.mark.parametrize("images_type", ["qcow2", "raw"])
def test_images_say_the_same_of_their_disks(sides: list[Side], images_type: str) -> None:
    options: list[dict[str, Any]] = [{}, {"preallocate_images": "space"}, {"libvirt__hw_disk_discard": "unmap"}]
    for option in options:
        for disk in ("disk", "disk.swap", "kernel"):
            step: dict[str, Any] = {"do": "show", "disk": disk, "type": images_type, "mapping": MAPPING}
            assert sides[0].one(step, **option) == sides[1].one(step, **option)
    assert [None, None] == [side.one(FETCH | {"type": images_type}) for side in sides]
    for where in ({"disk": "disk"}, {"disk": f"$/{UUID}/disk"}, {"libvirt_path": f"$/{UUID}/disk"}):
        step = {"do": "show", "type": images_type, **where}
        assert sides[0].one(step) == sides[1].one(step)


def test_types_say_the_same_and_the_driver_knows_an_overlay(sides: list[Side]) -> None:
    for kind in ("qcow2", "raw", "flat", "default", "lvm", "rbd", "ploop"):
        found = [side.one({"do": "type", "type": kind}, libvirt__images_volume_group="group") for side in sides]
        assert found[0] == found[1]
    for kind, expected in (("qcow2", True), ("raw", False), ("default", True)):
        step = {"do": "is-qcow2", "disk": "disk", "type": kind}
        assert [expected, expected] == [side.one(step) for side in sides]
    for what in ("type", "show"):
        assert ["RuntimeError"] * 2 == [side.one({"do": what, "disk": "disk", "type": "qcow3"}) for side in sides]


def test_whoever_calls_nova_s_classes_and_functions_can_call_ours(sides: list[Side]) -> None:
    found = sides[0].one({"do": "signatures"})
    for owner, ours in (("Image", Image), ("Backend", Backend), ("images", fetches), ("utils", fetches)):
        wanted = found[owner] if isinstance(ours, type) else {name: found[owner][name] for name in FUNCTIONS[owner]}
        for name in wanted.keys() - ITS_OWN:
            signature = inspect.signature(getattr(ours, name)).parameters.values()
            parameters = [[one.name, one.kind.name] for one in signature if one.name != "self"]
            # By position the order of 2020 holds, in which no "safe" was.
            positions = [[one for one in names if one[0] != "safe"] for names in (wanted[name], parameters)]
            assert positions[0] == positions[1], (owner, name)
            assert {one for one, _ in wanted[name]} == {one for one, _ in parameters}


def test_a_domain_s_xml_is_the_same(sides: list[Side]) -> None:
    assert [None, None] == [side.one(FETCH) for side in sides]
    specs = {"quota:disk_read_bytes_sec": "1024", "quota:disk_total_iops_sec": "5", "quota:cpu_shares": "1", "other": "x"}
    scsi = {"bus": "scsi", "dev": "sda", "type": "disk"}
    placed: list[tuple[dict[str, str], dict[str, Any]]]
    placed = [(MAPPING, {}), (MAPPING, {"boot_order": "1"}), (scsi, {"unit": 3}), (scsi, {})]
    for mapping, more in placed:
        for cache_mode in ("none", "writeback"):
            step = {"do": "xml", "disk": "disk", "mapping": mapping, "cache_mode": cache_mode, "extra_specs": specs, **more}
            found = [side.one(step) for side in sides]
            assert found[0] == found[1]
            assert found[0].startswith("<disk")
    preallocated = {"do": "xml", "disk": "disk", "mapping": MAPPING, "cache_mode": "none", "extra_specs": {}}
    assert len({side.one(preallocated, preallocate_images="space") for side in sides}) == 1
    assert ["AttributeError"] * 2 == [side.one(preallocated | {"mapping": None}) for side in sides]
    for of_driver in ({}, {"driver_type": "ploop"}):
        step = {"do": "fs-xml", "disk": "disk", **of_driver}
        assert len({side.one(step) for side in sides}) == 1


@pytest.mark.parametrize("images_type", ["qcow2", "raw"])
def test_who_looks_into_a_disk_is_told_the_same(sides: list[Side], images_type: str) -> None:
    step = {"do": "model", "disk": "disk", "type": images_type}
    found = [side.one(step) for side in sides]
    assert found[0] == found[1]
    assert ["LocalFileImage", [["format", images_type], ["path", f"$/{UUID}/disk"]]] == found[0]


@pytest.mark.parametrize("images_type", ["qcow2", "raw"])
@pytest.mark.parametrize("out_format", ["raw", "qcow2", "vmdk"])
def test_a_snapshot_is_the_same(sides: list[Side], tmp_path: Path, images_type: str, out_format: str) -> None:
    assert [None, None] == [side.one(FETCH | {"type": images_type}) for side in sides]
    found = []
    for side in sides:
        target = tmp_path / f"{side.whose}-snapshot"
        step = {"do": "extract", "disk": "disk", "type": images_type, "target": str(target), "format": out_format}
        assert None is side.one(step, libvirt__snapshot_compression=True)
        found.append(corpus.to_raw(target, tmp_path / "read", out_format).read_bytes())
    assert found[0] == found[1]


def test_the_same_errors_reach_nova_s_callers(sides: list[Side], tmp_path: Path) -> None:
    empty = tmp_path / "empty-secret"
    empty.write_bytes(bytes(MIB))
    lying = tmp_path / "lying"
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", empty, "-F", "raw", lying, "1M")
    glance = dict(sides[0].glance) | {"lying": in_glance(lying, "qcow2"), "mislabelled": in_glance(lying, "raw")}
    sides = [Side(side.nova, side.whose, side.root, glance) for side in sides]
    steps = {
        "FlavorDiskSmallerThanImage": FETCH | {"size": MIB},
        "ImageNotFound": FETCH | {"image_id": "70a599e0-31e7-49b7-b260-00000000dead", "filename": "0" * 40},
    }
    for error, step in steps.items():
        for images_type in ("qcow2", "raw"):
            assert [error, error] == [side.one(step | {"type": images_type}) for side in sides], error
    fails = FETCH | {"with": "fail", "filename": "1" * 40}
    assert ["ImageNotFound"] * 2 == [side.one(fails) for side in sides]
    verify = {"do": "verify", "disk": "disk", "base": f"$/_base/{BASE}"}
    assert [None, None] == [side.one(verify | {"size": None}) for side in sides]
    assert [None, None] == [side.one(verify | {"size": 2 * MIB}) for side in sides]
    assert ["FlavorDiskSmallerThanImage"] * 2 == [side.one(verify | {"size": 2 * MIB - 1}) for side in sides]
    for method in ("flatten", "direct_snapshot"):
        arguments = [] if method == "flatten" else [None, "name", "raw", "id", "base"]
        call = {"do": "call", "disk": "disk", "method": method, "arguments": arguments}
        assert ["NotImplementedError"] * 2 == [side.one(call) for side in sides]
    clone = {"do": "call", "disk": "disk", "method": "clone", "arguments": [None, IMAGE]}
    assert ["ImageUnacceptable"] * 2 == [side.one(clone) for side in sides]


def unacceptable(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Images that must not be booted from, with what Glance calls them."""
    secret = corpus.raw(tmp_path / "secret", MIB)
    for name, options in (("backing", ("-b", secret, "-F", "raw")), ("data", ("-o", f"data_file={secret},data_file_raw=on"))):
        corpus.qemu_img("create", "-q", "-f", "qcow2", *options, tmp_path / name, "1M")
    corpus.qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "flat.vmdk", "1M")
    return {
        "backing": (tmp_path / "backing", "qcow2"),
        "data": (tmp_path / "data", "qcow2"),
        "vmdk": (tmp_path / "flat.vmdk", "vmdk"),
        "called-raw": (corpus.small(tmp_path / "small", "qcow2"), "raw"),
        "called-qcow2": (secret, "qcow2"),
    }


def test_the_same_images_are_unacceptable(sides: list[Side], tmp_path: Path) -> None:
    for name, (path, disk_format) in unacceptable(tmp_path).items():
        for side in sides:
            one = Side(side.nova, side.whose, side.root, {IMAGE: in_glance(path, disk_format)})
            for force_raw in (True, False):
                assert "ImageUnacceptable" == one.one(FETCH, force_raw_images=force_raw), (name, side.whose)
                to_path = {"do": "fetch", "function": "fetch_to_raw", "image_id": IMAGE, "path": "$/fetched"}
                assert "ImageUnacceptable" == one.one(to_path, force_raw_images=force_raw), (name, side.whose)
    assert {} == sides[1].files()


@pytest.mark.parametrize("function", ["fetch", "fetch_to_raw", "fetch_raw_image"])
def test_fetch_functions_put_the_same_at_a_path(sides: list[Side], function: str) -> None:
    for image_id in (IMAGE, KERNEL):
        step = {"do": "fetch", "function": function, "image_id": image_id, "path": f"$/{UUID}/fetched"}
        assert [None, None] == [side.one(step) for side in sides]
        assert len({(side.root / UUID / "fetched").read_bytes() for side in sides}) == 1
        assert [["fetched"]] * 2 == [os.listdir(side.root / UUID) for side in sides]


def test_an_image_whose_signature_is_wrong_is_not_put_anywhere(sides: list[Side]) -> None:
    glance = {IMAGE: sides[0].glance[IMAGE] | {"raises": True}}
    ours = Side(sides[1].nova, "underlay", sides[1].root, glance)
    for function in ("fetch", "fetch_to_raw"):
        step = {"do": "fetch", "function": function, "image_id": IMAGE, "path": f"$/{UUID}/fetched"}
        assert "ImageUnacceptable" == ours.one(step)
    assert {} == ours.files()


def test_what_storage_cannot_is_said_as_nova_s_driver_expects_it(nova: Any, tmp_path: Path) -> None:
    for name in ("site", "_base"):
        (tmp_path / name).mkdir()
    install_backend(tmp_path / "site")
    absent: dict[str, Any] = {"do": "call", "disk": "disk", "type": "fake"}
    snapshot = absent | {"method": "direct_snapshot", "arguments": [None, "snapshot", "raw", IMAGE, IMAGE]}
    answer = nova.ask(
        whose="underlay",
        uuid=UUID,
        instances_path=str(tmp_path),
        steps=[snapshot, absent | {"method": "flatten"}],
        site=str(tmp_path / "site"),
    )
    told = [outcome["message"].partition(" at ")[0] for outcome in answer["steps"]]
    assert ["No disk", "No disk"] == told, answer


def test_what_nova_itself_has_said_is_told_once(sides: list[Side]) -> None:
    [ours] = sides[1].do({"do": "fetch", "function": "fetch", "image_id": UUID, "path": f"$/{UUID}/fetched"})["steps"]
    assert ("ImageNotFound", ["ImageNotFound"]) == (ours["error"], ours["causes"])


def test_an_image_whose_digest_is_another_is_refused(sides: list[Side]) -> None:
    promised = {"os_hash_algo": "sha512", "os_hash_value": "0" * 128}
    ours = Side(sides[1].nova, "underlay", sides[1].root, {IMAGE: sides[0].glance[IMAGE] | promised})
    assert "ImageUnacceptable" == ours.one(FETCH)
    assert {} == ours.files()


# ------------------------------------------------------------------------------------------------------ what is not as in Nova


def test_a_base_image_is_whole_before_it_has_its_name(sides: list[Side]) -> None:
    """Nova has a kernel, a swap and an ephemeral written under the name from which others take them."""
    written = {"do": "cache", "disk": "disk", "with": "fail", "filename": BASE, "size": 4 * MIB}
    assert ["ImageNotFound"] * 2 == [side.one(written) for side in sides]
    assert [[BASE], []] == [[name for name in os.listdir(side.root / "_base") if name != ".underlay"] for side in sides]
    # The half of an image that Nova's side has is booted from by whoever comes next.
    again = [side.do(FETCH) for side in sides]
    assert [[], [IMAGE]] == [answer["fetched"] for answer in again]


def test_a_callback_that_makes_nothing_is_told_as_such(sides: list[Side]) -> None:
    step = {"do": "cache", "disk": "disk", "with": "nothing", "filename": BASE, "size": 4 * MIB}
    [ours] = sides[1].do(step)["steps"]
    assert "nothing was made for the image" in ours["message"]
    assert {} == sides[1].files()


def test_a_base_image_that_is_cut_or_empty_is_not_used_for_ever(sides: list[Side]) -> None:
    for side in sides:
        (side.root / "_base").mkdir()
        (side.root / "_base" / BASE).touch()
    found = [side.one(FETCH) for side in sides]
    assert [None, "InvalidDiskInfo"] == found  # Nova gives the guest an empty disk


def test_a_disk_that_nova_made_without_a_record_grows(sides: list[Side]) -> None:
    """As it is after a block migration, for which Nova's driver makes the disk by itself."""
    assert [None, None] == [side.one(FETCH | {"disk": "disk.other"}) for side in sides]
    for side in sides:
        disk, base = side.root / UUID / "disk", side.root / "_base" / BASE
        corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk, "2M")
    assert [None, None] == [side.one(FETCH | {"size": 8 * MIB}) for side in sides]
    assert sides[0].files() == sides[1].files()


@pytest.mark.component("root")
def test_an_image_that_libvirt_has_given_to_qemu_s_user_gets_the_present_time(nova: Any, open_directory: Path) -> None:
    """By which a manager of Nova's own goes, where only the image backends are ours."""
    qemu, compute, an_hour = 64055, 65534, 3600
    base = open_directory / "_base" / BASE
    (open_directory / UUID).mkdir()
    base.parent.mkdir()
    base.write_bytes(corpus.noise(MIB))
    for path in (open_directory, base.parent, open_directory / UUID):
        os.chown(path, compute, compute)
    os.chown(base, qemu, qemu)
    before = time.time()
    for whose in WHOSE:
        os.utime(base, (before - an_hour, before - an_hour))
        step = FETCH | {"disk": f"disk.{whose}", "size": 2 * MIB}
        answer = nova.ask(
            whose=whose, uuid=UUID, instances_path=str(open_directory), glance={}, steps=[step], options={}, user=compute
        )
        assert (None, []) == (answer["steps"][0]["error"], answer["fetched"]), answer["steps"]
        assert before - 1 <= base.stat().st_mtime
        made = (open_directory / UUID / f"disk.{whose}").stat()
        assert (compute, 0o644) == (made.st_uid, made.st_mode & 0o777)


def test_a_resized_copy_of_a_raw_image_can_be_made_again(sides: list[Side]) -> None:
    """Nova says that the copy of a raw image is qcow2 when it grows it."""
    for side in sides:
        disk = side.root / UUID / "disk"
        backing = side.root / "_base" / f"{BASE}_1"
        corpus.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", disk, "1G")
        (disk.parent / "disk.info").write_text(json.dumps({str(disk): "qcow2"}))
    assert ["ProcessExecutionError", None] == [side.one(FETCH | {"size": GIB}) for side in sides]
    assert ("raw", GIB) == sides[1].files()[f"_base/{BASE}_1"][:2]


def test_a_swap_whose_base_is_gone_can_be_made_again(sides: list[Side]) -> None:
    """Nova takes the size in the name ``swap_8`` for that of a resized copy."""
    step = {
        "do": "cache",
        "disk": "disk.swap",
        "with": "swap",
        "filename": "swap_8",
        "size": 8 * MIB,
        "swap_mb": 8,
        "safe": True,
    }
    assert [None, None] == [side.one(step) for side in sides]
    assert sides[0].files() == sides[1].files()
    for side in sides:
        (side.root / "_base/swap_8").unlink()
    assert ["ProcessExecutionError", None] == [side.one(step) for side in sides]
    assert ("raw", 8 * MIB) == sides[1].files()["_base/swap_8"][:2]


def test_a_boot_and_a_precaching_at_once_fetch_an_image_once(nova: Any, tmp_path: Path) -> None:
    """Nova lets both write the same temporary file."""
    image = corpus.raw(tmp_path / "image", 64 * MIB, [(0, corpus.noise(16 * MIB))])
    root = tmp_path / "instances"
    (root / UUID).mkdir(parents=True)
    glance = {IMAGE: in_glance(image, "raw")}
    with image_backends() as another:
        boot, precaching = (Side(one, "underlay", root, glance) for one in (nova, another))
        with ThreadPoolExecutor(2) as pool:
            steps = [FETCH | {"size": 64 * MIB}, {"do": "precache", "image_id": IMAGE}]
            answers = list(pool.map(lambda side, step: side.do(step), (boot, precaching), steps))
    assert [None, None] == [answer["steps"][0]["error"] for answer in answers]
    assert [IMAGE] == [image for answer in answers for image in answer["fetched"]]
    assert {f"_base/{BASE}", f"{UUID}/disk", f"{UUID}/disk.info"} == boot.files().keys()


def test_a_disk_that_is_encrypted_at_rest_is_refused_as_in_nova(sides: list[Side]) -> None:
    step = {"do": "show", "disk": "disk"}
    assert ["InternalError"] * 2 == [side.one(step, ephemeral_storage_encryption__enabled=True) for side in sides]


def test_a_mistake_in_the_options_of_a_ceph_stops_no_disk_that_is_a_file(sides: list[Side]) -> None:
    ours, wrong = sides[1], {"libvirt__rbd_user": "client.nova"}
    assert None is ours.one(FETCH, **wrong)
    for options in ({}, {"libvirt__images_rbd_pool": ""}):
        [found] = ours.do({"do": "show", "disk": "disk"}, libvirt__images_type="rbd", **(options or wrong))["steps"]
        assert "RuntimeError" == found["error"]
        assert "images of the type rbd cannot be used" in found["message"]


def test_a_published_image_has_no_record_and_nova_boots_from_it(sides: list[Side], tmp_path: Path) -> None:
    ours = sides[1]
    assert None is ours.one(FETCH)
    base = ours.root / "_base" / BASE
    assert ATTRIBUTE not in os.listxattr(base)
    theirs = Side(ours.nova, "nova", ours.root, ours.glance)
    answer = theirs.do(FETCH | {"disk": "disk.rescue"})
    assert (None, []) == (answer["steps"][0]["error"], answer["fetched"])
    assert contents(ours, "disk", tmp_path) == contents(ours, "disk.rescue", tmp_path)


def test_our_disks_are_made_in_nova_s_eventlet_mode_too(sides: list[Side], tmp_path: Path) -> None:
    with image_backends(eventlet=True) as patched:
        answer = Side(patched, "underlay", sides[1].root, sides[1].glance).do(FETCH)
    assert (True, None) == (answer["eventlet"], answer["steps"][0]["error"])
    assert Path(sides[1].glance[IMAGE]["file"]).read_bytes() == contents(sides[1], "disk", tmp_path)[: 2 * MIB]
