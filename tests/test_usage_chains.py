"""Backing chains: however long, however named, wherever their files lie, they lead to every file of the cache beneath."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import corpus
from corpus import MIB
from machine import Machine
from probing import (
    IMAGES,
    ORIGINAL,
    OTHER,
    UUID,
    assert_opens,
    backing,
    inventory,
    kept,
    original,
    overlay,
    problems,
    record,
    uses,
)
from underlay.formats.backing import References
from underlay.usage.chains import Chains

SURE, PERHAPS = {"backing-file"}, {"backing-name"}

pytestmark = pytest.mark.component("qemu-img")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine.make(tmp_path)
    corpus.raw(machine.base / ORIGINAL, MIB)
    (machine.instances / UUID).mkdir()
    return machine


@pytest.fixture
def disk(machine: Machine) -> Path:
    return machine.instances / UUID / "disk"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere"
    path.mkdir()
    return path


def on(path: Path, backing_file: Path | str, backing_format: str = "qcow2") -> Path:
    """An overlay that QEMU opens, on a name as it is given."""
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", backing_file, "-F", backing_format, path)
    assert_opens(path)
    return path


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_a_chain_of_any_length_reaches_its_base(machine: Machine, disk: Path, elsewhere: Path, levels: int) -> None:
    below, kind = machine.base / ORIGINAL, "raw"
    for level in range(levels - 2):
        below, kind = on(elsewhere / f"level-{level}", below, kind), "qcow2"
    on(disk, below, kind)
    found = backing(machine)
    assert {ORIGINAL: SURE} == uses(found)
    assert frozenset() == kept(found)


def test_every_file_of_the_cache_on_the_way_is_used(machine: Machine, disk: Path, elsewhere: Path) -> None:
    middle = on(machine.base / f"{original(OTHER)}.qcow2", machine.base / ORIGINAL, "raw")
    on(disk, on(elsewhere / "above", middle))
    assert {ORIGINAL: SURE, middle.name: SURE} == uses(backing(machine))


def test_a_relative_name_is_one_to_the_directory_of_the_file_that_has_it(machine: Machine, disk: Path, elsewhere: Path) -> None:
    on(elsewhere / "middle", os.path.relpath(machine.base / ORIGINAL, elsewhere), "raw")
    on(disk, os.path.relpath(elsewhere / "middle", disk.parent))
    assert {ORIGINAL: SURE} == uses(backing(machine))


@pytest.mark.parametrize(
    "form",
    [
        'json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}',
        'json:{{"file.driver":"file","file.filename":"{}","driver":"raw"}}',
        "json:{{'driver':'raw','file':{{'driver':'file','filename':'{}'}}}}",
        'json:{{"driver":"raw","offset":0,"size":1048576,"file":{{"driver":"file","filename":"{}"}}}}',
        "file:{}",
    ],
)
def test_a_name_in_any_of_qemus_forms_leads_to_the_base(machine: Machine, disk: Path, form: str) -> None:
    on(disk, form.format(machine.base / ORIGINAL), "raw")
    found = backing(machine)
    assert {ORIGINAL: SURE} == uses(found)
    assert frozenset() == kept(found)


def test_a_description_in_json_leads_through_files_elsewhere(machine: Machine, disk: Path, elsewhere: Path) -> None:
    middle = on(elsewhere / "middle", machine.base / ORIGINAL, "raw")
    on(disk, f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{middle}"}}}}')
    assert {ORIGINAL: SURE} == uses(backing(machine))


def test_an_option_in_json_that_replaces_the_backing_file_is_followed(machine: Machine, disk: Path, elsewhere: Path) -> None:
    corpus.raw(elsewhere / "old", MIB)
    middle = on(elsewhere / "middle", elsewhere / "old", "raw")
    name = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(middle)},
        "backing": {"driver": "raw", "file": {"driver": "file", "filename": str(machine.base / ORIGINAL)}},
    }
    overlay(disk, f"json:{json.dumps(name)}")
    assert {ORIGINAL: SURE} == uses(backing(machine))


@pytest.mark.parametrize(
    "name",
    [
        'json:{"driver":"qcow2","file":{"driver":"file","filename":"pool/middle"}}',
        "file:pool/middle",
        "unknown:pool/middle",
        'json:{"driver":"qcow2","file":"a-node"}',
        'json:{"driver":"qcow2"}',
        'json:{"driver":"qcow2","file":',
    ],
)
def test_a_name_that_cannot_be_followed_for_certain_and_leads_nowhere_keeps_every_image(
    machine: Machine, disk: Path, name: str
) -> None:
    overlay(disk, name, backing_format="qcow2")  # relative to wherever QEMU was started
    assert IMAGES == kept(backing(machine))


@pytest.mark.parametrize(
    "name",
    [
        "nbd://host/export",
        "nbd:unix:/run/nbd.sock:exportname=x",
        "rbd:pool/image",
        "https://images.example/base",
        'json:{"driver":"nbd","server":{"type":"unix","path":"/run/nbd.sock"}}',
        'json:{"driver":"raw","file":{"driver":"rbd","pool":"p","image":"/i"}}',
    ],
)
def test_a_chain_ends_at_what_is_not_a_file_of_this_host(machine: Machine, disk: Path, name: str) -> None:
    overlay(disk, name)
    found = backing(machine)
    assert ({}, frozenset()) == (uses(found), kept(found))


def test_a_base_is_known_by_another_path_to_its_directory(machine: Machine, disk: Path, elsewhere: Path) -> None:
    (elsewhere / "alias").symlink_to(machine.base)
    (elsewhere / "link").symlink_to(machine.base / ORIGINAL)
    on(disk, elsewhere / "alias" / ORIGINAL, "raw")
    on(disk.with_name("disk.local"), elsewhere / "link", "raw")
    on(disk.with_name("disk.eph0"), f"{elsewhere}/..//{machine.base.name}/./{ORIGINAL}", "raw")
    found = backing(machine)
    assert {ORIGINAL: SURE} == uses(found)
    assert 3 == len([use for use in found.uses if use.sure])


def test_a_base_is_known_by_a_hard_link_of_any_name(machine: Machine, disk: Path, elsewhere: Path) -> None:
    (elsewhere / "another name").hardlink_to(machine.base / ORIGINAL)
    on(disk, elsewhere / "another name", "raw")
    assert {ORIGINAL: SURE} == uses(backing(machine))


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.component("root")
def test_a_base_is_known_through_a_bind_mount(machine: Machine, disk: Path, elsewhere: Path) -> None:
    (machine.base / "renamed").hardlink_to(machine.base / ORIGINAL)
    with bound(machine.base, elsewhere / "bound"):
        on(disk, elsewhere / "bound" / ORIGINAL, "raw")
        on(disk.with_name("disk.1"), elsewhere / "bound/renamed", "raw")
        found = backing(machine)
    assert {ORIGINAL: SURE} == {name: how & SURE for name, how in uses(found).items()}
    assert frozenset() == kept(found)


def test_the_same_name_in_another_directory_keeps_a_base_too(machine: Machine, disk: Path, elsewhere: Path) -> None:
    corpus.raw(elsewhere / ORIGINAL, MIB)
    on(disk, elsewhere / ORIGINAL, "raw")
    found = backing(machine)
    assert {ORIGINAL: PERHAPS} == uses(found)
    assert frozenset() == kept(found)


def test_the_path_of_another_host_means_the_base_of_that_name_here(machine: Machine, disk: Path) -> None:
    overlay(disk, f"/srv/of/another/host/_base/{ORIGINAL}")
    found = backing(machine)
    assert {ORIGINAL: PERHAPS} == uses(found)
    assert frozenset() == kept(found)


def test_a_base_that_is_gone_from_its_cache_keeps_nothing_else(machine: Machine, disk: Path) -> None:
    overlay(disk, machine.base / original(OTHER))
    found = backing(machine)
    assert frozenset() == kept(found)
    assert set(uses(found)) <= {original(OTHER)}


@pytest.mark.parametrize("kind", ["gone", "fifo", "directory", "unreadable"])
def test_a_chain_that_breaks_elsewhere_keeps_every_image(machine: Machine, disk: Path, elsewhere: Path, kind: str) -> None:
    middle = elsewhere / "middle"
    match kind:
        case "fifo":
            os.mkfifo(middle)
        case "directory":
            middle.mkdir()
        case "unreadable":
            middle.symlink_to("/proc/self/mem")
    overlay(disk, overlay(elsewhere / "above", middle), backing_format="qcow2")
    found = backing(machine)
    assert IMAGES == kept(found)
    assert [("disk-unreadable", disk)] == [each for each in problems(found) if each[1] == disk]
    assert frozenset() == kept(backing(machine, record()))  # whose image is known


def test_a_file_on_the_way_that_is_malformed_is_told_and_followed(machine: Machine, disk: Path, elsewhere: Path) -> None:
    middle = overlay(elsewhere / "middle", machine.base / ORIGINAL)
    corpus.patched(middle, (corpus.QCOW2_CLUSTER_BITS, corpus.u32(5)))
    overlay(disk, middle, backing_format="qcow2")
    found = backing(machine)
    assert ORIGINAL in uses(found)
    assert [("disk-malformed", middle)] == problems(found)


def test_a_loop_ends(machine: Machine, disk: Path, elsewhere: Path) -> None:
    overlay(elsewhere / "one", elsewhere / "two")
    overlay(elsewhere / "two", elsewhere / "one")
    overlay(disk, elsewhere / "one")
    overlay(disk.with_name("disk.local"), disk.with_name("disk.local"))
    overlay(disk.with_name("disk.eph0"), machine.base / ORIGINAL)
    assert {ORIGINAL: SURE} == uses(backing(machine))


def test_a_chain_longer_than_any_of_qemus_keeps_every_image(machine: Machine, elsewhere: Path, disk: Path) -> None:
    for number in range(3000):
        overlay(elsewhere / f"{number}", elsewhere / f"{number + 1}" if number < 2999 else machine.base / ORIGINAL)
    overlay(disk, elsewhere / "0")
    found = backing(machine)
    assert ORIGINAL in uses(found) or IMAGES == kept(found)


def test_a_file_that_many_disks_stand_on_is_read_once(machine: Machine, elsewhere: Path) -> None:
    middle = overlay(elsewhere / "middle", machine.base / ORIGINAL)
    chains = Chains.into([inventory(machine)])
    names = References("qcow2", (str(middle),))
    first = chains.of(names, directory=str(elsewhere))
    middle.unlink()
    again = chains.of(names, directory="/another")
    assert first == again
    assert ((machine.base, ORIGINAL, True),) == again.bases


@pytest.mark.parametrize(
    "name",
    [
        "json:" + "[" * 900,
        "json:" + '{"a":' * 180,
        "json:{" + '"' * 800,
        "%" * 1000,
        "a:" * 500,
        "/" * 1000,
        "../" * 300,
        "\\" * 1000,
        "x" * 300,
        "bad\udcffname",
        "line\nbreak",
    ],
)
def test_no_name_breaks_the_look(machine: Machine, disk: Path, name: str) -> None:
    overlay(disk, name)
    overlay(disk.with_name("disk.local"), machine.base / ORIGINAL)
    found = backing(machine)
    assert SURE <= uses(found)[ORIGINAL]
    for problem in found.problems:
        problem.detail.encode()


def test_a_name_of_64_kibibytes_is_told_and_nothing_more(machine: Machine, disk: Path) -> None:
    name = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": "/" + "x" * (64 << 10)}})
    overlay(disk, machine.base / ORIGINAL)
    content = bytearray(disk.read_bytes().ljust(256 << 10, b"\0"))
    content[8:20] = corpus.u64(4096) + corpus.u32(len(name))
    content[4096 : 4096 + len(name)] = name.encode()
    disk.write_bytes(content)
    found = backing(machine)
    assert [("disk-malformed", disk)] == problems(found)
