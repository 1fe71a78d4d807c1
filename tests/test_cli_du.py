"""``underlay du``: what caches and disks occupy, for people and for programs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import MIB, Machine, on_terminal, plain

SHA1 = 40 * "a"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


def test_what_caches_and_disks_occupy_is_what_is_allocated(machine: Machine) -> None:
    host, ref = machine.host(), machine.raw_image(payload=3 * MIB)
    image = host.ensure(ref)
    disk = host.create_disk("web-1", ref, backend="flat")

    told = machine.call("du", "--json").json

    (cache,) = told["caches"]
    assert ("base", "base", str(machine.base), 1, 0, False, None) == tuple(
        cache[key] for key in ("name", "kind", "path", "images", "ingests", "own_file_system", "files")
    )
    assert image.path.stat().st_blocks * 512 == cache["allocated"] + cache["shared"]
    assert (1, str(machine.instances)) == (told["disks"]["count"], told["disks"]["path"])
    assert disk.path.stat().st_blocks * 512 == told["disks"]["allocated"] + told["disks"]["shared"]


def test_every_kind_is_counted_by_itself_and_the_sum_is_the_caches(machine: Machine) -> None:
    sizes = {SHA1: 5, f"{SHA1}_20": 4, "swap_512": 3, "ephemeral_20_abcdefg": 2, f"{SHA1}.part": 6, "notes": 1}
    for name, size in sizes.items():
        (machine.base / name).write_bytes(os.urandom(size * MIB))

    (cache,) = machine.call("du", "--json").json["caches"]

    kinds = {kind["kind"]: (kind["count"], kind["allocated"]) for kind in cache["kinds"]}
    expected = {"original": 5, "resized": 4, "swap": 3, "ephemeral": 2, "leftover": 6, "other": 1}
    assert {kind: (1, size * MIB) for kind, size in expected.items()} == kinds
    assert (4, 21 * MIB) == (cache["images"], cache["allocated"])
    lines = [line.split() for line in machine.call("du").out.splitlines()]
    assert ["WHAT", "COUNT", "ON", "DISK", "SHARED", "FREE", "PATH"] == lines[0]
    assert ["base", "(base)", "4", "21.0", "MiB"] == lines[1][:5]
    assert [*expected, "disks"] == [line[0] for line in lines[2:]]


def test_each_file_is_told_when_it_is_asked_for(machine: Machine) -> None:
    (machine.base / SHA1).write_bytes(os.urandom(2 * MIB))
    (machine.base / "swap_512").write_bytes(os.urandom(MIB))
    os.link(machine.base / "swap_512", machine.root / "elsewhere")
    odd = os.fsencode(machine.base) + b"/\xff\n"
    with open(odd, "wb"):
        pass

    (cache,) = machine.call("du", "--images", "--json").json["caches"]
    text = machine.call("du", "--images", "--wide").out

    files = {file["name"]: (file["kind"], file["allocated"], file["own"], file["links"]) for file in cache["files"]}
    assert {
        SHA1: ("original", 2 * MIB, 2 * MIB, 1),
        "swap_512": ("swap", MIB, 0, 2),
        "\\xff\n": ("other", 0, 0, 1),
    } == files
    assert SHA1 in text
    assert r"\udcff\n" in text


def test_a_dead_ingest_is_counted(machine: Machine) -> None:
    machine.host().ensure(machine.raw_image())
    dead = machine.base / ".underlay" / "tmp" / (64 * "a")
    dead.mkdir()
    (dead / "download").write_bytes(bytes(2 * MIB))

    assert 2 * MIB == machine.call("du", "--json").json["caches"][0]["ingests"]
    assert "ingests" in machine.call("du").out


@pytest.mark.component("root", "xfs")
def test_disks_that_share_their_images_blocks_are_not_counted_again(mounted: Callable[..., Path]) -> None:
    machine = Machine.make(mounted("xfs"))
    host, ref = machine.host(), machine.raw_image(payload=8 * MIB)
    image = host.ensure(ref)
    for number in range(3):
        host.create_disk(f"web-{number}", ref, backend="flat")
    os.sync()

    told = machine.call("du", "--json").json

    size = image.path.stat().st_blocks * 512
    assert size == told["caches"][0]["allocated"] + told["caches"][0]["shared"]
    assert told["disks"]["allocated"] < MIB
    assert told["disks"]["shared"] >= 3 * 8 * MIB


@pytest.mark.component("root", "tmpfs")
def test_a_cache_on_another_file_system_than_the_instances_says_so(mounted: Callable[..., Path], tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    apart = mounted("tmpfs")
    machine.config.write_text(machine.config.read_text().replace(str(machine.base), str(apart)))

    assert [True] == [cache["own_file_system"] for cache in machine.call("du", "--json").json["caches"]]
    assert f"own file system: {apart}" in machine.call("du").out


def test_the_sums_fit_a_terminal(machine: Machine) -> None:
    (machine.base / f"{SHA1}.qcow2").write_bytes(b"x")

    for arguments in (["du"], ["du", "--images"]):
        status, sent = on_terminal(machine.argv(*arguments))
        assert 0 == status
        assert max(map(len, plain(sent).splitlines())) <= 80
