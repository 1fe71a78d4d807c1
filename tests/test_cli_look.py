"""``underlay list``, ``show`` and ``check``: looking, by whoever may read."""

import json
from pathlib import Path

import pytest

from machine import GIB, MIB, NOBODY, Machine, on_terminal, plain, tree

IMAGE_KEYS = {
    "name", "path", "cache", "recorded", "ref", "version_id", "format", "size", "virtual_size", "min_disk", "allocated",
    "digests", "stored_digest", "fetched_at", "last_used", "damage", "disks", "leases",
}  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


# ------------------------------------------------------------------------------------------------------------------------ list


def test_where_nothing_was_fetched_yet_there_are_no_images(machine: Machine) -> None:
    ended = machine.call("list")

    assert (0, "No images.\n", "") == (ended.status, ended.out, ended.err)
    assert {"images": [], "problems": []} == machine.call("list", "--json").json


def test_images_are_listed_with_who_uses_them(machine: Machine) -> None:
    host, ref = machine.host(), machine.raw_image()
    image = host.ensure(ref)
    host.create_disk("web-1", ref, size=GIB)
    host.create_disk("web-2", ref, size=GIB)

    told = machine.call("list", "--json").json["images"]
    lines = machine.call("list").out.splitlines()

    assert [IMAGE_KEYS] == [one.keys() for one in told]
    assert [(image.name, ref, [str(machine.instances / name / "disk") for name in ("web-1", "web-2")])] == [
        (one["name"], one["ref"], one["disks"]) for one in told
    ]
    assert ["NAME", "REF", "FORMAT", "ON", "DISK", "VIRTUAL", "USERS", "LAST", "USED"] == lines[0].split()
    assert [f"{image.name[:12]}.raw", ref, "raw"] == lines[1].split()[:3]
    assert [2, "2"] == [len(lines), lines[1].split()[7]]
    assert image.name in machine.call("list", "--wide").out


def test_what_stands_in_an_images_place_is_told_beside_the_images(machine: Machine) -> None:
    image = machine.host().ensure(machine.raw_image())
    (machine.base / (40 * "a")).symlink_to("/etc/passwd")

    told, text = machine.call("list", "--json"), machine.call("list")

    assert (0, [image.name]) == (told.status, [one["name"] for one in told.json["images"]])
    (problem,) = told.json["problems"]
    assert {"code", "path", "detail"} == problem.keys()
    assert ("not-an-image", str(machine.base / (40 * "a"))) == (problem["code"], problem["path"])
    assert text.out.splitlines()[-1].startswith(f"problem not-an-image: {machine.base / (40 * 'a')}")


def test_one_cache_can_be_listed(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    machine = Machine.make(tmp_path, extra=f'[caches.second]\nkind = "base"\npath = "{tmp_path}/second"\n')
    machine.host().ensure(machine.raw_image(), cache="second")

    counts = [
        len(machine.call("list", "--json", *cache).json["images"]) for cache in ([], ["--cache", "base"], ["--cache", "second"])
    ]

    assert [1, 0, 1] == counts
    assert (17, "unknown-cache") == ((ended := machine.call("list", "--cache", "x", "--json")).status, ended.error["code"])


def test_the_list_fits_a_terminal(machine: Machine) -> None:
    name = "an-image-with-a-name-that-is-longer-than-a-line-of-a-terminal-is-wide-" + 20 * "x" + ".raw"
    machine.host().ensure(machine.raw_image(name))

    status, sent = on_terminal(machine.argv("list"))

    lines = plain(sent).splitlines()
    assert (0, 2) == (status, len(lines))
    assert max(map(len, lines)) <= 80
    assert "xxx.raw " in lines[1]


# ------------------------------------------------------------------------------------------------------------------------ show


def test_an_image_is_shown_by_all_that_means_it(machine: Machine) -> None:
    ref = machine.raw_image()
    image = machine.host().ensure(ref)

    answers = [
        machine.call("show", text, "--json").json
        for text in (image.name, image.name[:6], f"{image.name[:12]}.raw", ref, str(image.path))
    ]

    assert all([image.name] == [one["name"] for one in answer["images"]] for answer in answers)
    assert {"images"} == answers[0].keys()
    assert IMAGE_KEYS == answers[0]["images"][0].keys()


def test_an_image_is_shown_to_people_with_all_that_is_known(machine: Machine) -> None:
    host, ref = machine.host(), machine.raw_image()
    image = host.ensure(ref)
    disk = host.create_disk("web-1", image)

    text = machine.call("show", ref).out

    assert image.record is not None
    for told in (image.name, image.path, ref, *image.record.digests, "used by 1 disk", f"web-1/disk (qcow2) {disk.path}"):
        assert str(told) in text


def test_a_beginning_that_several_images_have_shows_all(machine: Machine) -> None:
    names = [f"abcdef{number:034x}" for number in (1, 2)]
    for name in names:
        (machine.base / name).write_bytes(bytes(512))

    told, text = machine.call("show", "abcdef", "--json").json, machine.call("show", "abcdef").out

    assert names == [one["name"] for one in told["images"]]
    assert all(name in text for name in names)


def test_the_tree_fits_a_terminal(machine: Machine) -> None:
    ref = machine.raw_image(60 * "x" + ".raw")
    machine.host().create_disk("web-1", ref)

    status, sent = on_terminal(machine.argv("show", ref))

    assert 0 == status
    assert max(map(len, plain(sent).splitlines())) <= 80


# ----------------------------------------------------------------------------------------------------------------------- check


def test_findings_are_told_for_people_and_for_programs(machine: Machine) -> None:
    for_people, for_programs = machine.call("check"), machine.call("check", "--json")

    findings = for_programs.json["findings"]
    assert (0, 0) == (for_people.status, for_programs.status)
    assert {"code", "level", "path", "detail", "hint"} == findings[0].keys()
    assert ["LEVEL", "CODE", "WHAT"] == for_people.out.splitlines()[0].split()
    assert {finding["code"] for finding in findings} == {line.split()[1] for line in for_people.out.splitlines()[1:]}


def test_a_problem_is_a_status_of_its_own_and_still_an_answer(machine: Machine) -> None:
    (machine.base / (40 * "a")).mkdir()

    for_people, for_programs = machine.call("check"), machine.call("check", "--json")

    assert (3, 3, "", "") == (for_people.status, for_programs.status, for_people.err, for_programs.err)
    assert "not-an-image" in [finding["code"] for finding in for_programs.json["findings"]]
    assert for_people.out.splitlines()[-1].startswith("problem")


def test_the_findings_fit_a_terminal(machine: Machine) -> None:
    status, sent = on_terminal(machine.argv("check"))

    assert 0 == status
    assert max(map(len, plain(sent).splitlines())) <= 80


# --------------------------------------------------------------------------------------------------------------- reading alone


@pytest.fixture
def of_root(short_directory: Path) -> Machine:
    """A host that root has used, which everybody may read as far as its modes go."""
    machine = Machine.make(short_directory)
    host, ref = machine.host(), machine.raw_image()
    host.create_disk("web-1", ref)
    host.create_disk("web-2", ref, path=machine.root / "root.img")
    for path in (machine.root, machine.base, machine.instances):
        path.chmod(0o755)
    return machine


@pytest.mark.component("root")
@pytest.mark.parametrize("command", ["list", "du", "disk list", "check", "show REF"])
def test_a_user_who_may_write_nothing_looks_all_the_same(of_root: Machine, command: str) -> None:
    ref = f"file://{of_root.root}/image.raw"
    arguments = [ref if word == "REF" else word for word in command.split()]
    before = tree(of_root.root)

    text, told = of_root.run(*arguments, user=NOBODY), of_root.run(*arguments, "--json", user=NOBODY)

    status = 3 if command == "check" else 0  # that it may not write is a problem
    assert (status, status) == (text.status, told.status), text.err + told.err
    assert before == tree(of_root.root)
    match command:
        case "list" | "show REF":
            assert [ref] == [image["ref"] for image in told.json["images"]]
        case "du":
            assert (1, None) == (told.json["caches"][0]["images"], told.json["caches"][0]["ingests"])
            assert "?" in text.out
        case "disk list":
            assert ["web-1", "?"] == sorted((disk["instance"] for disk in told.json["disks"]), reverse=True)
        case _:
            assert "cache-not-writable" in [finding["code"] for finding in told.json["findings"]]


@pytest.mark.component("root")
def test_a_user_who_may_write_nothing_fetches_nothing_and_is_told_why(of_root: Machine) -> None:
    ref = f"file://{of_root.root}/image.raw"
    before = tree(of_root.root)

    ended = of_root.run("fetch", ref, "--json", user=NOBODY)

    assert (42, "cache-not-writable") == (ended.status, ended.error["code"])
    assert str(of_root.base) in str(ended.error["message"])
    assert before == tree(of_root.root)


def test_looking_at_a_host_that_was_never_used_makes_nothing(machine: Machine) -> None:
    before = tree(machine.root)

    for command in (["list"], ["du"], ["disk", "list"], ["check"], ["show", "abcdef"], ["disk", "show", "web-1"]):
        machine.call(*command)

    assert before == tree(machine.root)


def test_novas_images_are_looked_at_without_any_record(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, base="instances/_base", options="force_raw_images = true")
    name = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
    (machine.base / name).write_bytes(b"an image" * 1024)
    disk = machine.instances / "web-1" / "disk"
    disk.parent.mkdir()
    disk.write_bytes(bytes(MIB))
    (disk.parent / "disk.info").write_text(json.dumps({str(disk): "raw"}))

    (image,) = machine.call("list", "--json").json["images"]

    assert (name, False, None, "raw", 8192, []) == tuple(
        image[key] for key in ("name", "recorded", "ref", "format", "size", "digests")
    )
    assert "unrecorded" in machine.call("list").out
    assert "unrecorded" in machine.call("show", name).out
    assert ["raw"] == [one["format"] for one in machine.call("disk", "list", "--json").json["disks"]]
