"""``underlay precache``: each image is told by itself, and one that fails keeps no other."""

from pathlib import Path

import pytest

from machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


def outcomes(machine: Machine, *arguments: str) -> tuple[int, list[str]]:
    ended = machine.call("precache", *arguments, "--json")
    return ended.status, [one["outcome"] for one in ended.json["images"]]


def test_what_is_not_there_yet_is_cached_and_what_is_there_exists(machine: Machine) -> None:
    first, second = machine.raw_image("a.raw"), machine.raw_image("b.raw")

    assert (0, ["cached"]) == outcomes(machine, first)
    assert (0, ["existing", "cached"]) == outcomes(machine, first, second)
    assert (0, ["existing", "existing"]) == outcomes(machine, first, second)


def test_one_that_fails_keeps_no_other_and_its_status_is_the_commands(machine: Machine) -> None:
    good, missing = machine.raw_image(), f"file://{machine.root}/none"

    ended = machine.call("precache", "gopher://host/a", missing, good, "nonsense", "--json")

    assert 11 == ended.status
    images = ended.json["images"]
    assert [{"ref", "outcome", "path", "error"}] * 4 == [one.keys() for one in images]
    assert ["unsupported", "error", "cached", "error"] == [one["outcome"] for one in images]
    assert ["unknown-scheme", "image-not-found", None, "invalid-ref"] == [(one["error"] or {}).get("code") for one in images]
    assert [None, None, True, None] == [one["path"] and Path(one["path"]).exists() for one in images]
    assert 20 == machine.call("precache", missing, "gopher://host/a").status


def test_several_are_fetched_at_once(machine: Machine) -> None:
    refs = [machine.raw_image(f"{number}.raw") for number in range(6)]

    assert (0, ["cached"] * 6) == outcomes(machine, *refs, *refs[:0], "--jobs", "4")


def test_the_same_ref_twice_is_fetched_once(machine: Machine) -> None:
    ref = machine.raw_image()

    status, told = outcomes(machine, ref, ref, "--jobs", "2")

    assert (0, ["cached", "existing"]) == (status, sorted(told))


def test_people_see_one_line_an_image(machine: Machine) -> None:
    ref = machine.raw_image()

    lines = machine.call("precache", ref, "gopher://host/a").out.splitlines()

    assert ["OUTCOME", "REF", "WHAT"] == lines[0].split()
    assert ["cached", ref] == lines[1].split()[:2]
    assert ["unsupported", "gopher://host/a"] == lines[2].split()[:2]


def test_no_password_is_shown(machine: Machine) -> None:
    ended = machine.call("precache", "https://user:secret@127.0.0.1:1/a.img", "--json")

    assert 22 == ended.status
    assert "secret" not in ended.out + ended.err


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@127.0.0.1:99999/a.img",
        "s3://AKIA:a/secret@bucket/key",
        "s3://bucket/key?X-Amz-Signature=secret",
    ],
)
def test_no_secret_is_shown_of_what_is_no_ref(machine: Machine, text: str) -> None:
    ended = machine.call("precache", text, "--json")

    assert 10 == ended.status
    assert "secret" not in ended.out + ended.err


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--jobs", "0"], 2), (["--cache", "none"], 17)])
def test_what_cannot_be_meant_is_refused(machine: Machine, arguments: list[str], status: int) -> None:
    refs = [] if not arguments else [machine.raw_image()]

    ended = machine.call("precache", *refs, *arguments, "--json")

    assert status == ended.status
    assert {"error"} == ended.json.keys()
    assert [] == machine.call("list", "--json").json["images"]


def test_images_go_to_the_cache_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    machine = Machine.make(tmp_path, extra=f'[caches.second]\nkind = "base"\npath = "{tmp_path}/second"\n')

    (image,) = machine.call("precache", machine.raw_image(), "--cache", "second", "--json").json["images"]

    assert tmp_path / "second" == Path(image["path"]).parent
