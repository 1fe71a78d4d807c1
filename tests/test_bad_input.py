"""Bad input, end to end: each kind has a class, a code and an exit status of its own, one clear line, and leaves nothing."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machine import MIB, NOBODY, Machine, command_line, run, tree
from underlay import errors
from underlay.cli.check import FINDINGS
from underlay.errors import UnderlayError
from underlay.testing.httpserver import Served, serving

SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine.make(tmp_path)
    machine.raw_image()
    return machine


def refused(machine: Machine, *arguments: str | Path, user: int | None = None) -> UnderlayError:
    """The command's error, for people and for programs alike; it leaves everything as it was, and is told in one line."""
    before = tree(machine.root)
    if user is None:
        for_people, for_programs = machine.call(*arguments), machine.call(*arguments, "--json")
    else:
        for_people, for_programs = machine.run(*arguments, user=user), machine.run(*arguments, "--json", user=user)
    assert before == tree(machine.root)
    return told_alike(for_people.status, for_people.out, for_people.err, for_programs.status, for_programs.error)


def told_alike(status: int, out: str, err: str, json_status: int, error: dict[str, str | None]) -> UnderlayError:
    (kind,) = [one for one in classes() if one.code == error["code"]]
    assert (kind.exit_code, kind.exit_code) == (status, json_status), err
    assert "" == out
    hint = f" ({error['hint']})" if error["hint"] else ""
    assert f"underlay: {error['message']}{hint}" == err.splitlines()[-1]
    assert "Traceback" not in err
    message = error["message"]
    assert message
    found = UnderlayError(message, hint=error["hint"])
    found.__class__ = kind
    return found


def classes(root: type[UnderlayError] = UnderlayError) -> Iterator[type[UnderlayError]]:
    yield root
    for branch in root.__subclasses__():
        yield from classes(branch)


def test_no_error_ends_as_a_check_that_found_a_problem_does() -> None:
    assert FINDINGS not in {one.exit_code for one in classes()}


# ------------------------------------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize("ref", ["gopher:image", "swift://bucket/key", "ftp://host/a.img"])
def test_an_unknown_scheme(machine: Machine, ref: str) -> None:
    error = refused(machine, "fetch", ref)

    assert isinstance(error, errors.UnknownScheme)
    assert "known schemes: az, file, glance, gs, http, https, oci, s3, simplestreams" == error.hint


REFS_THAT_ARE_NONE = [
    "", "image", "/srv/image.raw", "https://", "https:///image", "http://host:port/a", "file:relative", "file://host/a",
    "oci://host", "oci://host/repo@sha256:abc", "http://h/a b", "file:///", "file:///a/../b",
    "https://h/" + 2000 * "x", "glance:not-a-uuid", ":", "https://h/a\x07",
]  # fmt: skip


@pytest.mark.parametrize("ref", REFS_THAT_ARE_NONE)
def test_a_malformed_ref(machine: Machine, ref: str) -> None:
    for command in (["fetch", ref], ["disk", "create", "web-1", "--image", ref]):
        error = refused(machine, *command)

        assert isinstance(error, errors.InvalidRef)


@pytest.mark.parametrize(
    "digest", ["abc", "sha256:", "sha256:abc", f"sha3:{64 * 'a'}", f"sha256:{64 * 'g'}", f"md5:{64 * 'a'}", ":"]
)
def test_a_malformed_digest(machine: Machine, digest: str) -> None:
    error = refused(machine, "fetch", f"file://{machine.root}/image.raw", "--checksum", digest)

    assert isinstance(error, errors.InvalidDigest)
    assert error.hint


@pytest.mark.parametrize(
    "size", ["40", "1.5", "", "GiB", "-1GiB", "40 gigs", "1e3GiB", "1GiB2", "0x10GiB", 40 * "9" + "GiB", "9999PiB"]
)
def test_a_size_without_a_unit_or_a_number(machine: Machine, size: str) -> None:
    for command in (
        ["disk", "create", "web-1", "--image", f"file://{machine.root}/image.raw", f"--size={size}"],
        ["disk", "resize", "web-1", "--", size],
    ):
        error = refused(machine, *command) if "--" not in command else refused_before_dashes(machine, command)

        assert isinstance(error, errors.InvalidSize)


def refused_before_dashes(machine: Machine, command: list[str]) -> UnderlayError:
    """As `refused`, for a command whose last argument may begin with a dash; the disk is there."""
    machine.host().create_disk("web-1", f"file://{machine.root}/image.raw", backend="flat")
    before = tree(machine.root)
    for_people = machine.call(*command)
    for_programs = machine.call(*command[:2], "--json", *command[2:])
    assert before == tree(machine.root)
    return told_alike(for_people.status, for_people.out, for_people.err, for_programs.status, for_programs.error)


@pytest.mark.parametrize("name", ["../web", "a/b", "/web", ".", "..", ".web", "", "a b", "wéb", 129 * "a", "web\n"])
def test_an_instances_name_that_is_no_plain_name(machine: Machine, name: str) -> None:
    for command in (
        ["disk", "create", name, "--image", f"file://{machine.root}/image.raw"],
        ["disk", "show", name],
        ["disk", "resize", name, "1GiB"],
        ["disk", "remove", name],
    ):
        assert isinstance(refused(machine, *command), errors.InvalidName)


@pytest.mark.parametrize(
    "name", ["../disk", "disk/a", "/disk", "", "root", "disk.info", "disk.info.tmp", "disk\x01", "disk." + 125 * "a"]
)
def test_a_disks_name_that_is_none(machine: Machine, name: str) -> None:
    for command in (
        ["disk", "create", "web-1", "--image", f"file://{machine.root}/image.raw", "--name", name],
        ["disk", "show", "web-1", "--name", name],
        ["disk", "remove", "web-1", "--name", name],
    ):
        assert isinstance(refused(machine, *command), errors.InvalidName)


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_a_name_with_a_leading_dash(machine: Machine, dashes: list[str]) -> None:
    ended = machine.call("disk", "show", *dashes, "-x")

    assert 14 if dashes else 2 == ended.status
    assert 1 == ended.err.count("\n")


@pytest.mark.parametrize(
    "path", ["disk", "./disk", "../disk", "/srv/../disk", "//srv/disk", "/", "/srv/disk.info", "/srv/" + 250 * "a"]
)
def test_a_disks_path_that_is_none(machine: Machine, path: str) -> None:
    for command in (["create", "web-1", "--image", f"file://{machine.root}/image.raw"], ["show", "web-1"], ["remove", "web-1"]):
        assert isinstance(refused(machine, "disk", *command, "--path", path), errors.InvalidName)


def test_a_path_that_is_not_utf_8(machine: Machine) -> None:
    argv = machine.argv("disk", "create", "web-1", "--image", f"file://{machine.root}/image.raw", "--path")

    ended = run([*argv, os.fsdecode(bytes(machine.root) + b"/\xff")])

    assert (14, 1) == (ended.status, ended.err.count("\n"))


def test_an_unknown_backend_and_an_unknown_cache(machine: Machine) -> None:
    ref = f"file://{machine.root}/image.raw"

    backend = refused(machine, "disk", "create", "web-1", "--image", ref, "--backend", "floppy")
    caches = [
        refused(machine, "disk", "create", "web-1", "--image", ref, "--cache", "other"),
        refused(machine, "fetch", ref, "--cache", "other"),
        refused(machine, "list", "--cache", "other"),
    ]

    assert isinstance(backend, errors.UnknownBackend)
    assert "known backends: default, flat, lvm, ploop, qcow2, raw, rbd" == backend.hint
    assert all(isinstance(error, errors.UnknownCache) for error in caches)
    assert {"configured caches: base"} == {error.hint for error in caches}


# ------------------------------------------------------------------------------------------------------------ the configuration


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[caches", "no TOML"),
        ("[caches.base]\nkind = 'base'\npath = 'relative'", "caches.base.path"),
        ("[caches.base]\nkind = 'base'\npath = '/srv'\nvirtual_size_limit = 10", "caches.base.virtual_size_limit"),
        ("[caches.base]\nkind = 'base'\npath = 10", "Expected `str`"),
        ("[caches.base]\nkind = 'base'\npath = '/srv'\nunknown = 1", "unknown"),
        ("", "no cache"),
    ],
)
def test_a_configuration_that_is_none(machine: Machine, text: str, told: str) -> None:
    machine.config.write_text(text)

    for command in (["list"], ["fetch", "file:///a"], ["check"]):
        error = refused(machine, *command)

        assert isinstance(error, errors.ConfigError)
        assert error.message.startswith(str(machine.config))
        assert told in error.message


def test_a_configuration_that_is_not_there(machine: Machine) -> None:
    machine.config.unlink()

    assert isinstance(refused(machine, "list"), errors.ConfigError)


@pytest.mark.component("root")
def test_a_configuration_that_may_not_be_read(short_directory: Path) -> None:
    short_directory.chmod(0o755)
    machine = Machine.make(short_directory)
    machine.config.chmod(0o600)

    error = refused(machine, "list", user=NOBODY)

    assert isinstance(error, errors.ConfigError)
    assert "Permission denied" in error.message


def test_no_configuration_is_needed_to_be_told_of_a_bad_one() -> None:
    ended = run(command_line(["--config", "/nowhere/underlay.toml", "list"]))

    assert (16, 1) == (ended.status, ended.err.count("\n"))
    assert "/nowhere/underlay.toml is not there" in ended.err


# -------------------------------------------------------------------------------------------------------------- the directories


def test_a_cache_that_is_not_there(machine: Machine) -> None:
    machine.base.rmdir()
    ref = f"file://{machine.root}/image.raw"

    for command in (["fetch", ref], ["list"], ["show", SHA1], ["du"], ["disk", "create", "web-1", "--image", ref]):
        error = refused(machine, *command)

        assert isinstance(error, errors.CacheMissing)
        assert str(machine.base) in error.message


def test_instances_that_are_not_there(machine: Machine) -> None:
    machine.host().ensure(f"file://{machine.root}/image.raw")
    machine.instances.rmdir()
    argv = ["disk", "create", "web-1", "--image", f"file://{machine.root}/image.raw"]

    ended = machine.call(*argv)

    assert (41, "") == (ended.status, ended.out)
    assert str(machine.instances) in ended.err.splitlines()[-1]
    assert not machine.instances.exists()
    assert (0, "No disks.\n") == ((listed := machine.call("disk", "list")).status, listed.out)


@pytest.mark.component("root")
def test_directories_that_may_not_be_written(short_directory: Path) -> None:
    machine = Machine.make(short_directory)
    for path in (machine.root, machine.base, machine.instances):
        path.chmod(0o755)
    ref = machine.raw_image()

    for command in (["fetch", ref], ["disk", "create", "web-1", "--image", ref]):
        error = refused(machine, *command, user=NOBODY)

        assert isinstance(error, errors.CacheNotWritable)
        assert str(machine.base) in error.message
        assert error.hint


@pytest.mark.component("root")
@pytest.mark.parametrize("backend", ["flat", "qcow2"])
def test_instances_that_may_not_be_written(short_directory: Path, backend: str) -> None:
    machine = Machine.make(short_directory)
    for path in (machine.root, machine.instances):
        path.chmod(0o755)
    os.chown(machine.base, NOBODY, NOBODY)
    ref = machine.raw_image()
    assert 0 == machine.run("fetch", ref, user=NOBODY).status

    ended = machine.run("disk", "create", "web-1", "--image", ref, "--backend", backend, "--json", user=NOBODY)

    assert (42, "cache-not-writable") == (ended.status, ended.error["code"])
    assert str(machine.instances) in str(ended.error["message"])
    assert [] == list(machine.instances.iterdir())
    assert [] == machine.host().disks()


@pytest.fixture
def read_only(mounted: Callable[..., Path]) -> Machine:
    """A host on a file system that was mounted read-only after it was used."""
    machine = Machine.make(mounted("tmpfs", 64 * MIB))
    machine.host().create_disk("web-1", machine.raw_image(size=MIB, payload=0), backend="flat")
    subprocess.run(["mount", "-o", "remount,ro", machine.root], check=True)
    return machine


@pytest.mark.component("root", "tmpfs")
@pytest.mark.parametrize(
    "command", ["fetch REF", "disk create web-2 --image REF", "disk resize web-1 2MiB", "disk remove web-1"]
)
def test_a_read_only_file_system(read_only: Machine, command: str) -> None:
    ref = f"file://{read_only.root}/image.raw"

    error = refused(read_only, *(ref if word == "REF" else word for word in command.split()))

    assert isinstance(error, errors.CacheNotWritable)
    assert "Read-only file system" in error.message
    assert "mount the file system read-write" in str(error.hint)


@pytest.mark.component("root", "tmpfs")
def test_a_read_only_file_system_can_be_looked_at(read_only: Machine) -> None:
    assert 1 == len(read_only.run("list", "--json").json["images"])
    assert 1 == len(read_only.run("disk", "list", "--json").json["disks"])
    assert 0 == read_only.run("du").status


@pytest.mark.component("root", "tmpfs")
def test_a_file_system_without_room(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    machine = Machine.make(tmp_path)
    small = mounted("tmpfs", 4 * MIB)
    machine.config.write_text(machine.config.read_text().replace(f'"{machine.base}"', f'"{small}"'))

    ended = machine.call("fetch", machine.raw_image(payload=12 * MIB), "--json")

    assert (47, "insufficient-space") == (ended.status, ended.error["code"])
    for word in ("needed", "free", "reclaimable"):
        assert word in str(ended.error["message"])
    assert [] == list((small / ".underlay" / "tmp").iterdir())
    assert [".underlay"] == os.listdir(small)


@pytest.mark.parametrize("layout", ["2", "0", '"1"', "null", "1.5"])
def test_an_unknown_layout_number(machine: Machine, layout: str) -> None:
    (machine.base / ".underlay").mkdir()
    (machine.base / ".underlay" / "format").write_text(f'{{"layout": {layout}, "nova_locks": null}}')
    ref = f"file://{machine.root}/image.raw"

    for command in (["fetch", ref], ["list"], ["show", ref], ["du"], ["disk", "create", "web-1", "--image", ref]):
        error = refused(machine, *command)

        assert isinstance(error, errors.UnknownLayout)
        assert str(machine.base) in error.message


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "directory", "fifo"])
def test_an_images_name_that_is_no_plain_file(machine: Machine, kind: str) -> None:
    ref = f"file://{machine.root}/image.raw"
    name = machine.host().ensure(ref).name
    place = machine.base / name
    place.unlink()
    match kind:
        case "symlink":
            place.symlink_to("/etc/passwd")
        case "dangling symlink":
            place.symlink_to("/nowhere")
        case "directory":
            place.mkdir()
        case _:
            os.mkfifo(place)
    before = place.lstat()

    fetched, shown = machine.call("fetch", ref, "--json"), machine.call("show", name, "--json")
    made = machine.call("disk", "create", "web-1", "--image", ref, "--json")

    for ended in (fetched, shown, made):
        assert (45, "not-an-image") == (ended.status, ended.error["code"])
        assert str(place) in str(ended.error["message"])
    assert before == place.lstat()
    assert [] == list(machine.instances.iterdir())
    assert [] == list((machine.base / ".underlay" / "tmp").iterdir())


# ---------------------------------------------------------------------------------------------------------------- the bytes


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("force_raw", ["true", "false"])
def test_an_image_that_names_another_file_is_refused_by_its_rule_and_leaves_nothing(tmp_path: Path, force_raw: str) -> None:
    machine = Machine.make(tmp_path, options=f"force_raw_images = {force_raw}")
    evil = machine.root / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", evil, "1M"], check=True)
    with serving({"/evil.img": Served(evil, etag='"1"')}) as server:
        ended = machine.call("fetch", server.url("/evil.img"), "--json")
        text = machine.call("fetch", server.url("/evil.img"))

    assert (31, "unsafe-image") == (ended.status, ended.error["code"])
    assert f"{server.url('/evil.img')} is refused by rule backing-file" in str(ended.error["message"])
    assert str(ended.error["message"]) in text.err.splitlines()[-1]
    assert [".underlay"] == os.listdir(machine.base)
    assert [] == list((machine.base / ".underlay" / "tmp").iterdir())


def test_a_file_that_is_not_allowed_is_refused_with_what_to_do(machine: Machine) -> None:
    ended = machine.call("fetch", "file:///etc/hostname", "--json")

    assert (26, "source-refused") == (ended.status, ended.error["code"])
    assert "allowed_paths" in str(ended.error["hint"])
