"""``underlay disk``: create, list, show, resize, remove."""

import json
import os
from pathlib import Path

import pytest

from machine import GIB, MIB, Machine, on_terminal, plain, qemu_img_json

pytestmark = pytest.mark.component("qemu-img")

UUID = "6f1b3c0e-3f8e-4a41-9b1e-1c2d3e4f5a6b"
KEYS = {"instance", "name", "path", "backend", "format", "size", "allocated", "base", "base_path", "parent"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


def test_the_life_of_a_disk(machine: Machine) -> None:
    ref, path = machine.raw_image(), machine.instances / UUID / "disk"

    created = machine.call("disk", "create", UUID, "--image", ref, "--size", "1GiB", "--json")
    again = machine.call("disk", "create", UUID, "--image", ref, "--size", "1GiB", "--json")
    shown = machine.call("disk", "show", UUID, "--json")
    listed = machine.call("disk", "list", "--json")
    resized = machine.call("disk", "resize", UUID, "2GiB", "--json")
    size = qemu_img_json("info", "-f", "qcow2", path)["virtual-size"]
    removed = machine.call("disk", "remove", UUID, "--json")

    assert [0] * 6 == [ended.status for ended in (created, again, shown, listed, resized, removed)]
    (image,) = machine.host().images()[0]
    disk = created.json["disk"]
    assert KEYS == disk.keys()
    assert {
        "instance": UUID,
        "name": "disk",
        "path": str(path),
        "backend": "qcow2",
        "format": "qcow2",
        "size": GIB,
        "base": image.name,
        "base_path": str(image.path),
        "parent": None,
    } == {key: disk[key] for key in KEYS - {"allocated"}}
    assert {"disk": disk} == again.json == shown.json
    assert {"disks": [disk]} == listed.json
    assert 2 * GIB == resized.json["disk"]["size"] == size
    assert {"removed": resized.json["disk"]} == removed.json
    assert [] == list(machine.instances.iterdir())
    assert {"disks": []} == machine.call("disk", "list", "--json").json


def test_for_people_each_answer_names_the_file(machine: Machine) -> None:
    ref, path = machine.raw_image(), machine.instances / "web-1" / "disk"
    assert "No disks.\n" == machine.call("disk", "list").out

    created = machine.call("disk", "create", "web-1", "--image", ref, "--size", "1GiB").out
    shown = machine.call("disk", "show", "web-1").out
    listed = machine.call("disk", "list").out.splitlines()
    wide = machine.call("disk", "list", "--wide").out
    resized = machine.call("disk", "resize", "web-1", "2GiB").out
    removed = machine.call("disk", "remove", "web-1").out

    (image,) = machine.host().images()[0]
    assert created.startswith(f"{path} (qcow2, 1.0 GiB, ")
    assert created.endswith(f" on disk) made from {image.name}\n")
    assert created == shown
    assert ["INSTANCE", "NAME", "BACKEND", "SIZE", "ON", "DISK", "BASE"] == listed[0].split()
    assert ["web-1", "disk", "qcow2", "1.0", "GiB"] == listed[1].split()[:5]
    assert str(path) in wide
    assert image.name in wide
    assert resized.startswith(f"{path} (qcow2, 2.0 GiB, ")
    assert f"removed {path}\n" == removed


def test_the_image_of_a_disk_is_fetched_first(machine: Machine) -> None:
    ended = machine.call("disk", "create", "web-1", "--image", machine.raw_image())

    assert "published" in ended.err
    assert 1 == len(machine.host().images()[0])


def test_the_image_of_a_disk_may_be_named_as_the_list_shows_it(machine: Machine) -> None:
    image = machine.host().ensure(machine.raw_image())

    for number, text in enumerate((image.name, f"{image.name[:12]}.raw", str(image.path))):
        told = machine.call("disk", "create", f"web-{number}", "--image", str(text), "--json").json["disk"]
        assert str(image.path) == told["base_path"]


def test_a_name_that_several_images_have_makes_no_disk(machine: Machine) -> None:
    for number in (1, 2):
        (machine.base / f"abcdef{number:034x}").write_bytes(bytes(512))

    ended = machine.call("disk", "create", "web-1", "--image", "abcdef", "--json")

    assert (40, "not-cached") == (ended.status, ended.error["code"])
    assert all(f"abcdef{number:034x}" in str(ended.error["message"]) for number in (1, 2))
    assert [] == list(machine.instances.iterdir())


@pytest.mark.parametrize(("backend", "stored"), [("flat", "raw"), ("raw", "raw"), ("qcow2", "qcow2"), ("default", "qcow2")])
def test_each_backend_can_be_named(machine: Machine, backend: str, stored: str) -> None:
    disk = machine.call("disk", "create", "web-1", "--image", machine.raw_image(), "--backend", backend, "--json").json["disk"]

    assert stored == disk["format"]


def test_an_instance_has_disks_of_several_names(machine: Machine) -> None:
    ref = machine.raw_image()
    for name in ("disk", "disk.local"):
        machine.call("disk", "create", "web-1", "--image", ref, "--name", name)

    assert {"disk", "disk.local"} == {disk["name"] for disk in machine.call("disk", "list", "--json").json["disks"]}
    assert 0 == machine.call("disk", "remove", "web-1", "--name", "disk.local").status
    assert ["disk"] == [disk["name"] for disk in machine.call("disk", "list", "--json").json["disks"]]


def test_a_disk_elsewhere_is_called_by_its_path(machine: Machine) -> None:
    path = machine.root / "root.img"
    created = machine.call("disk", "create", "web-1", "--image", machine.raw_image(), "--path", path, "--json")

    shown = machine.call("disk", "show", "web-1", "--path", path, "--json")
    resized = machine.call("disk", "resize", "web-1", "1GiB", "--path", path, "--json")
    assert str(path) in machine.call("disk", "list").out
    removed = machine.call("disk", "remove", "web-1", "--path", path)

    assert str(path) == created.json["disk"]["path"] == shown.json["disk"]["path"]
    assert GIB == resized.json["disk"]["size"]
    assert (0, f"removed {path}\n") == (removed.status, removed.out)
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["create", "web-1", "--image", "REF", "--size", "1MiB"], 50, "disk-too-small"),
        (["create", "there", "--image", "REF", "--size", "2GiB"], 51, "disk-exists"),
        (["create", "there", "--image", "REF", "--backend", "flat"], 51, "disk-exists"),
        (["show", "web-1"], 52, "disk-not-found"),
        (["resize", "web-1", "1GiB"], 52, "disk-not-found"),
        (["remove", "web-1"], 52, "disk-not-found"),
        (["resize", "there", "1MiB"], 54, "shrink-refused"),
        (["resize", "unrecorded", "1GiB"], 56, "disk-unrecorded"),
        (["resize", "there", "40"], 13, "invalid-size"),
        (["create", "web-1", "--image", "REF", "--size", "40"], 13, "invalid-size"),
        (["create", "web-1", "--image", "REF", "--backend", "floppy"], 15, "unknown-backend"),
        (["create", "web-1", "--image", "REF", "--cache", "other"], 17, "unknown-cache"),
        (["create", "../web", "--image", "REF"], 14, "invalid-name"),
        (["create", "web-1", "--image", "REF", "--name", "disk.info"], 14, "invalid-name"),
        (["create", "web-1", "--image", "REF", "--path", "relative"], 14, "invalid-name"),
        (["create", "web-1", "--image", "file:nothing"], 10, "invalid-ref"),
        (["create", "web-1", "--image", "nothing"], 10, "invalid-ref"),
    ],
)
def test_each_refusal_has_its_own_code_and_changes_nothing(
    machine: Machine, arguments: list[str], status: int, code: str
) -> None:
    ref = machine.raw_image()
    there = machine.host().create_disk("there", ref, size=GIB)
    (machine.instances / "unrecorded").mkdir()
    (machine.instances / "unrecorded" / "disk").write_bytes(bytes(MIB))
    before = {path: path.stat().st_mtime_ns for path in machine.instances.rglob("*")}
    argv = ["disk", *(ref if argument == "REF" else argument for argument in arguments)]

    for_people, for_programs = machine.call(*argv), machine.call(*argv, "--json")

    assert (status, "") == (for_people.status, for_people.out)
    last = for_people.err.splitlines()[-1]
    assert last.startswith("underlay: ")
    assert (status, code) == (for_programs.status, for_programs.error["code"])
    assert str(for_programs.error["message"]) in last
    assert before == {path: path.stat().st_mtime_ns for path in machine.instances.rglob("*")}
    assert there in machine.host().disks()


def test_a_disk_that_nova_recorded_is_shown_grown_and_removed(machine: Machine) -> None:
    disk = machine.instances / "web-1" / "disk"
    disk.parent.mkdir()
    disk.write_bytes(bytes(MIB))
    (disk.parent / "disk.info").write_text(json.dumps({str(disk): "raw"}))

    shown = machine.call("disk", "show", "web-1", "--json").json["disk"]
    resized = machine.call("disk", "resize", "web-1", "2MiB", "--json").json["disk"]

    assert ("raw", "flat", MIB, None) == (shown["format"], shown["backend"], shown["size"], shown["base"])
    assert 2 * MIB == resized["size"] == disk.stat().st_size
    assert 0 == machine.call("disk", "remove", "web-1").status
    assert [] == list(machine.instances.iterdir())


def test_a_disk_that_lost_its_attribute_is_known_by_novas_record(machine: Machine) -> None:
    disk = machine.host().create_disk("web-1", machine.raw_image(), size=GIB)
    os.removexattr(disk.path, "user.underlay")

    shown = machine.call("disk", "show", "web-1", "--json").json["disk"]

    assert ("qcow2", GIB, disk.base, str(disk.base_path)) == tuple(
        shown[key] for key in ("format", "size", "base", "base_path")
    )
    assert 2 * GIB == machine.call("disk", "resize", "web-1", "2GiB", "--json").json["disk"]["size"]
    assert 0 == machine.call("disk", "create", "web-1", "--image", f"file://{machine.root}/image.raw", "--size", "2GiB").status


def test_the_list_fits_a_terminal(machine: Machine) -> None:
    ref = machine.raw_image()
    machine.call("disk", "create", UUID, "--image", ref)
    (machine.root / "a directory with a rather long name").mkdir()
    machine.call(
        "disk", "create", "web-1", "--image", ref, "--path", machine.root / "a directory with a rather long name" / "x"
    )

    status, sent = on_terminal(machine.argv("disk", "list"))

    lines = plain(sent).splitlines()
    assert (0, 3) == (status, len(lines))
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(UUID) for line in lines)


@pytest.mark.component("qemu-img")
def test_a_disk_elsewhere_that_is_gone_is_forgotten_by_hand_only(machine: Machine) -> None:
    ref, path = machine.raw_image(), machine.root / "vms" / "root.qcow2"
    path.parent.mkdir()
    machine.run("disk", "create", "web-1", "--image", ref, "--path", path)
    base = machine.host().find(ref)[0]
    refused = machine.run("disk", "forget", path, "--json")
    assert (51, "disk-exists") == (refused.status, refused.error["code"])
    path.unlink()
    later = ["prune", "--json", "--now", "2100-01-01T00:00:00Z"]
    kept = machine.run(*later).json
    assert base.path.exists()
    assert {"disk-missing", "no-inventory"} == {problem["code"] for problem in kept["problems"]}
    assert {"forgotten": str(path)} == machine.run("disk", "forget", path, "--json").json
    again = machine.run("disk", "forget", path)
    assert 52 == again.status
    assert f"no disk is recorded at {path}" in again.err
    assert [str(base.path)] == machine.run("prune", "--json", "--now", "2200-01-01T00:00:00Z").json["removed"]
