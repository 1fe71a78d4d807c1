"""Directories of instances that are not what they were: a file system that is not mounted must not look like an empty one."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import Machine
from probing import DAY, IMAGES, ORIGINAL, OTHER, overlay, put, record
from underlay.model import InstanceRecord
from underlay.plan import Plan
from underlay.store import mounts
from underlay.usage.mounts import seen_roots

Mounted = Callable[..., Path]
EVERYTHING = IMAGES | {"swap", "ephemeral"}

pytestmark = pytest.mark.component("root", "tmpfs", "ext4")


@pytest.fixture
def machine(tmp_path: Path, mounted: Mounted) -> Machine:
    """A cache on a file system of its own."""
    machine = Machine.make(tmp_path, base="unused")
    own = Machine(tmp_path, mounted("tmpfs"), machine.instances, machine.config)
    text = machine.config.read_text(encoding="utf-8").replace(str(machine.base), str(own.base))
    machine.config.write_text(f'host = "me"\n{text}', encoding="utf-8")
    put(own, ORIGINAL, age=10 * DAY)
    return own


def plan(machine: Machine, *records: InstanceRecord) -> Plan:
    return machine.host().plan_prune(instances=records)


def doubts(plan: Plan) -> list[tuple[str, frozenset[str]]]:
    return [(one.code, one.keeps) for one in plan.unknowns]


def removes(plan: Plan) -> list[str]:
    return [one.file.name for one in plan.verdicts if one.removes]


def mount(kind: str, source: Path | str, target: Path) -> None:
    subprocess.run(["mount", "-t", kind, "-o", "loop" if kind == "ext4" else "mode=0755", source, target], check=True)


def ext4(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", path], check=True, capture_output=True)
    return path


def noted(machine: Machine) -> None:
    """A pass that notes the roots as they are and removes nothing."""
    host = machine.host()
    host.apply(host.plan_prune(now=None, instances=[record()]))


def test_a_root_that_has_directories_raises_no_doubt(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    for _ in range(2):
        assert [] == doubts(plan(machine, record(host="me", image_ref=None)))
        noted(machine)
    (machine.instances / OTHER / "deeper").mkdir()
    assert [] == doubts(plan(machine))


def test_a_file_system_that_is_no_longer_mounted_keeps_everything(machine: Machine, tmp_path: Path) -> None:
    image = ext4(tmp_path / "instances.img")
    mount("ext4", image, machine.instances)
    try:
        overlay(machine.instances / OTHER / "disk", machine.base / ORIGINAL)
        noted(machine)
    finally:
        subprocess.run(["umount", machine.instances], check=True)
    assert [("root-moved", EVERYTHING)] == doubts(plan(machine))
    assert [] == removes(plan(machine))
    host = machine.host()
    host.apply(host.plan_prune())  # which must not take what it sees for granted
    assert [("root-moved", EVERYTHING)] == doubts(plan(machine))

    mount("ext4", image, machine.instances)
    try:
        assert [] == doubts(plan(machine))
    finally:
        subprocess.run(["umount", machine.instances], check=True)


def test_another_file_system_in_the_roots_place_is_accepted_by_a_word(machine: Machine, tmp_path: Path) -> None:
    (machine.instances / OTHER).mkdir()
    noted(machine)
    mount("ext4", ext4(tmp_path / "other.img"), machine.instances)
    try:
        assert [("root-moved", EVERYTHING)] == doubts(plan(machine))
        machine.host().accept()
        assert [] == doubts(plan(machine))
    finally:
        subprocess.run(["umount", machine.instances], check=True)


def test_a_root_that_became_empty_keeps_everything_until_it_is_accepted(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    noted(machine)
    (machine.instances / OTHER).rmdir()
    assert [("root-empty", EVERYTHING)] == doubts(plan(machine))
    host = machine.host()
    host.apply(host.plan_prune())
    assert [("root-empty", EVERYTHING)] == doubts(plan(machine))
    host.accept()
    assert [] == doubts(plan(machine))


def test_a_root_that_is_empty_although_instances_are_here_keeps_everything(machine: Machine) -> None:
    assert [("root-empty", EVERYTHING)] == doubts(plan(machine, record(host="me", image_ref=None)))
    assert [] == doubts(plan(machine, record(host="another", image_ref=None)))


def test_an_empty_root_that_was_accepted_is_right_though_instances_are_here(machine: Machine) -> None:
    """As where all disks are volumes, or lie where the inventory says."""
    here = record(host="me", image_ref=None)
    assert [("root-empty", EVERYTHING)] == doubts(plan(machine, here))
    machine.host().accept()
    assert [] == doubts(plan(machine, here))


def test_an_empty_root_beside_its_cache_is_no_doubt(tmp_path: Path) -> None:
    """What lies on the cache's own file system is mounted when the cache is."""
    machine = Machine.make(tmp_path)
    put(machine, ORIGINAL)
    (machine.instances / OTHER).mkdir()
    noted(machine)
    (machine.instances / OTHER).rmdir()
    assert [] == doubts(plan(machine, record(host=machine.host().config.host, image_ref=None)))


def test_a_root_that_is_gone_keeps_everything_and_is_remembered(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    noted(machine)
    machine.instances.rename(machine.instances.with_name("away"))
    found = plan(machine)
    assert [("directory-unreadable", EVERYTHING)] == doubts(found)
    machine.host().apply(found)
    machine.instances.mkdir()
    assert [("root-moved", EVERYTHING)] == doubts(plan(machine))


def test_what_was_noted_and_cannot_be_read_keeps_everything(machine: Machine) -> None:
    noted(machine)
    store = machine.host().config.caches["base"]
    store.paths.instance_roots.unlink(missing_ok=True)
    store.paths.instance_roots.mkdir()
    assert "root-unknown" in [code for code, _ in doubts(plan(machine))]


def test_extra_roots_are_watched_too(machine: Machine, mounted: Mounted, tmp_path: Path) -> None:
    pool = mounted("tmpfs")
    text = machine.config.read_text(encoding="utf-8").replace("[instances]", f'[instances]\nextra_roots = ["{pool}"]')
    machine.config.write_text(text, encoding="utf-8")
    (machine.instances / OTHER).mkdir()
    (pool / "vm").mkdir()
    noted(machine)
    (pool / "vm").rmdir()
    assert [("root-empty", EVERYTHING)] == doubts(plan(machine))


def test_a_pool_of_plain_files_is_accepted_though_it_has_no_directories(machine: Machine, mounted: Mounted) -> None:
    pool = mounted("tmpfs")
    text = machine.config.read_text(encoding="utf-8").replace("[instances]", f'[instances]\nextra_roots = ["{pool}"]')
    machine.config.write_text(text, encoding="utf-8")
    (machine.instances / OTHER).mkdir()
    overlay(pool / "vm.qcow2", machine.base / ORIGINAL)
    here = record(host="me", image_ref=None)
    assert [("root-empty", EVERYTHING)] == doubts(plan(machine, here))
    machine.host().accept()
    assert [] == doubts(plan(machine, here))


def test_what_is_counted_are_the_directories_in_a_root(tmp_path: Path) -> None:
    roots = [str(tmp_path), str(tmp_path / "one")]
    read = [str(tmp_path), *(str(tmp_path / name) for name in ("one", "two", "one/inner", "one/inner/most"))]
    (tmp_path / "one").mkdir()
    found = seen_roots([*roots, str(tmp_path / "gone")], read, [f"{tmp_path}/one/inner"])
    assert {roots[0]: 2, roots[1]: 1} == {path: root.directories for path, root in found.items()}
    assert {roots[0]: (f"{tmp_path}/one/inner",), roots[1]: (f"{tmp_path}/one/inner",)} == {
        path: root.mounts for path, root in found.items()
    }


@pytest.mark.component("root")
def test_a_bind_mount_that_is_not_there_keeps_everything(machine: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", "--bind", elsewhere, machine.instances], check=True)
    try:
        (machine.instances / OTHER).mkdir()
        noted(machine)
        assert [] == doubts(plan(machine))
    finally:
        subprocess.run(["umount", machine.instances], check=True)
    assert [("root-moved", EVERYTHING)] == doubts(plan(machine))
    machine.host().accept()
    assert [] == doubts(plan(machine))


@pytest.mark.component("root", "tmpfs")
def test_a_file_system_below_a_root_that_is_not_mounted_keeps_everything(machine: Machine) -> None:
    own = machine.instances / OTHER
    own.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", own], check=True)
    try:
        noted(machine)
        assert [] == doubts(plan(machine))
    finally:
        subprocess.run(["umount", own], check=True)
    assert [("root-moved", EVERYTHING)] == doubts(plan(machine))


def test_a_note_that_cannot_be_read_keeps_everything_until_it_is_accepted(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    noted(machine)
    machine.host().config.caches["base"].paths.instance_roots.write_bytes(b"{")
    assert [("root-unknown", EVERYTHING)] == doubts(plan(machine))
    machine.host().accept()
    assert [] == doubts(plan(machine))


def test_nothing_is_written_while_nothing_changes(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    noted(machine)
    store = machine.host().config.caches["base"]
    before = os.stat(store.paths.instance_roots).st_ino
    noted(machine)
    assert before == os.stat(store.paths.instance_roots).st_ino
    assert 1 == mounts.recall(store)[str(machine.instances)].directories
