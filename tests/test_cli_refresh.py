"""``underlay refresh``: each ref is told by itself, for people and for programs."""

from pathlib import Path

import pytest

from machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path, extra=f'[follow]\nrefs = ["file://{tmp_path}/image.raw"]\n')


def outcomes(machine: Machine, *arguments: str) -> tuple[int, list[str]]:
    ended = machine.call("refresh", *arguments, "--json")
    return ended.status, [one["outcome"] for one in ended.json["refs"]]


def test_what_is_followed_is_moved_and_then_current(machine: Machine) -> None:
    machine.raw_image()

    assert (0, ["moved"]) == outcomes(machine)
    assert (0, ["current"]) == outcomes(machine)
    machine.raw_image(message="another")
    assert (0, ["moved"]) == outcomes(machine, "--dry-run")
    assert (0, ["moved"]) == outcomes(machine)


def test_programs_are_told_all(machine: Machine) -> None:
    ref = machine.raw_image()
    machine.call("refresh")
    machine.raw_image(message="another")

    answer = machine.call("refresh", "--keep", "0", "--json").json

    assert {"dry_run", "refs"} == answer.keys()
    assert answer["dry_run"] is False
    [one] = answer["refs"]
    assert {"ref", "cache", "outcome", "before", "after", "path", "versions", "error"} == one.keys()
    assert (ref, str(machine.base), None) == (one["ref"], one["cache"], one["error"])
    assert one["before"] != one["after"]
    assert one["after"].startswith(f"{ref}#sha256:")
    assert ["hold", "let-go"] == [version["action"] for version in one["versions"]]
    assert [one["after"], one["before"]] == [version["version_id"] for version in one["versions"]]
    assert ["newest", "superseded"] == [version["reason"]["code"] for version in one["versions"]]
    assert machine.base / one["versions"][0]["name"] == Path(one["path"])


def test_the_status_is_that_of_the_first_that_failed(machine: Machine) -> None:
    good, missing = machine.raw_image(), f"file://{machine.root}/none"

    assert (20, ["moved", "error", "error"]) == outcomes(machine, good, missing, "gopher://host/a")
    Path(good.removeprefix("file://")).unlink()
    ended = machine.call("refresh", good, "--json")
    assert (20, "last-good") == (ended.status, ended.json["refs"][0]["outcome"])
    assert {"code", "message", "hint"} == ended.json["refs"][0]["error"].keys()


def test_people_see_one_line_a_ref(machine: Machine) -> None:
    ref = machine.raw_image()

    dry = machine.call("refresh", "--dry-run").out.splitlines()
    lines = machine.call("refresh", ref, "gopher://host/a").out.splitlines()

    assert ["moved", ref, "newest:", "not", "here", "yet"] == dry[1].split()
    assert ["OUTCOME", "REF", "WHAT"] == lines[0].split()
    assert ["moved", ref, "newest:"] == lines[1].split()[:3]
    assert "no source serves 'gopher' refs" in lines[2]
    machine.raw_image(message="another")
    assert "older held: 1" in machine.call("refresh").out
    assert "let go: " in machine.call("refresh", "--keep", "0").out


def test_nothing_that_is_followed_is_no_failure(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)

    assert (0, []) == outcomes(machine)
    assert "No refs are followed" in machine.call("refresh").out


def test_images_go_to_the_cache_that_is_configured_or_named(tmp_path: Path) -> None:
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
    caches = "".join(f'[caches.{name}]\nkind = "base"\npath = "{tmp_path}/{name}"\n' for name in ("second", "third"))
    machine = Machine.make(tmp_path, extra=f'{caches}[follow]\nrefs = ["file://{tmp_path}/image.raw"]\ncache = "second"\n')
    machine.raw_image()

    told = [machine.call("refresh", *named, "--json").json["refs"] for named in ([], ["--cache", "third"])]

    assert [["second"], ["third"]] == [[Path(one["path"]).parent.name for one in refs] for refs in told]


def test_no_password_is_shown(machine: Machine) -> None:
    ended = machine.call("refresh", "https://user:secret@127.0.0.1:1/a.img", "--json")

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
    ended = machine.call("refresh", text, "--json")

    assert 10 == ended.status
    assert "secret" not in ended.out + ended.err


@pytest.mark.parametrize(("arguments", "status"), [(["--keep", "-1"], 2), (["--cache", "none"], 17)])
def test_what_cannot_be_meant_is_refused(machine: Machine, arguments: list[str], status: int) -> None:
    ended = machine.call("refresh", *arguments, "--json")

    assert status == ended.status
    assert {"error"} == ended.json.keys()
