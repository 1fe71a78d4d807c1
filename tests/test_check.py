"""The look over a host: what it finds, and that it changes nothing at all."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from machine import GIB, MIB, Machine, tree
from underlay import check
from underlay.check import Finding, check_host
from underlay.config import embedded_config, load_config
from underlay.model import Level
from underlay.store.staging import Staging, write_reservation

SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


@pytest.fixture
def nova(tmp_path: Path) -> Machine:
    """A host as Nova leaves it, with a cache directly below the instances path."""
    return Machine.make(tmp_path, base="instances/_base", options="force_raw_images = true")


def found(machine: Machine) -> list[Finding]:
    return check_host(load_config(machine.config))


def of_code(machine: Machine, code: str) -> list[Finding]:
    return [finding for finding in found(machine) if finding.code == code]


def the(machine: Machine, code: str) -> Finding:
    """The one finding of this code."""
    (finding,) = of_code(machine, code)
    return finding


def codes(machine: Machine) -> list[str]:
    """The codes of what is more than information; what else runs on this machine is not the test's."""
    serious = (finding for finding in found(machine) if finding.level in (Level.WARNING, Level.PROBLEM))
    return [finding.code for finding in serious if finding.code != "rival-running"]


def fill_as_nova_does(machine: Machine) -> None:
    for name in (SHA1, f"{SHA1}_20", "swap_512", "ephemeral_20_0706d66"):
        (machine.base / name).write_bytes(b"an image" * 1024)
    (machine.base / f"{SHA1}.part").write_bytes(b"half an image")
    (machine.base / f"{SHA1[::-1]}.converted").write_bytes(b"half an image")
    (machine.base / "notes.txt").write_text("mine")
    (machine.instances / "locks").mkdir()
    (machine.instances / "locks" / f"nova-{SHA1}").touch()
    (machine.instances / "compute_nodes").write_text(json.dumps({"node1": time.time() - 90000}))
    disk = machine.instances / "6f1b3c0e-3f8e-4a41-9b1e-1c2d3e4f5a6b" / "disk"
    disk.parent.mkdir()
    disk.write_bytes(bytes(MIB))
    (disk.parent / "disk.info").write_text(json.dumps({str(disk): "raw"}))
    (disk.parent / "console.log").write_text("booting")


# ----------------------------------------------------------------------------------------------------------- it changes nothing


def test_a_look_at_a_base_of_novas_changes_nothing(nova: Machine) -> None:
    fill_as_nova_does(nova)
    before = tree(nova.root)

    ended = nova.run("check")

    assert 0 == ended.status, ended.out
    assert before == tree(nova.root)


def test_a_look_at_a_cache_of_ours_changes_nothing(nova: Machine) -> None:
    fill_as_nova_does(nova)
    host = nova.host()
    base = host.ensure(nova.raw_image())
    host.create_disk("web-1", base)
    host.create_disk("web-2", base, path=nova.root / "root.img")
    dead_ingest(nova)
    (nova.base / ".underlay" / "trash" / SHA1).write_bytes(b"on its way out")
    before = tree(nova.root)

    nova.run("check")

    assert before == tree(nova.root)


def test_a_look_for_programs_changes_nothing_either(nova: Machine) -> None:
    before = tree(nova.root)

    findings = nova.run("check", "--json").json["findings"]

    assert before == tree(nova.root)
    assert all({"code", "level", "path", "detail", "hint"} == finding.keys() for finding in findings)


# ------------------------------------------------------------------------------------------------------------------- in order


def test_a_healthy_host_has_nothing_above_information(nova: Machine) -> None:
    nova.host().create_disk("web-1", nova.raw_image())

    assert [] == codes(nova)
    expected = {"tool-found", "disks", "laid-out", "attributes-kept", "space", "images", "scrubs", "nova-locks-used"}
    expected |= {"prune-keeps", "no-inventory"}
    assert expected == {finding.code for finding in found(nova)} - {"rival-running"}


def test_a_cache_that_we_never_used_is_not_laid_out_yet(nova: Machine) -> None:
    finding = the(nova, "not-laid-out")

    assert (Level.INFO, nova.base) == (finding.level, finding.path)


def test_images_are_counted_with_what_they_occupy(nova: Machine) -> None:
    fill_as_nova_does(nova)

    assert "4 images of 32.0 KiB, 4 of them unrecorded" == the(nova, "images").detail
    assert "1 disk" == the(nova, "disks").detail


def test_an_embedded_default_that_was_never_used_is_in_order(tmp_path: Path) -> None:
    findings = check_host(embedded_config(tmp_path / "data"))

    assert {Level.INFO} == {finding.level for finding in findings}
    assert not (tmp_path / "data").exists()


# ---------------------------------------------------------------------------------------------------------------- directories


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ('{"layout": 2, "nova_locks": null}', "unknown-layout"),
        ("not JSON", "unknown-layout"),
        ('{"layout": 1, "nova_locks": null}', "layout-disagrees"),
    ],
)
def test_a_layout_that_is_not_ours_is_a_problem(nova: Machine, content: str, code: str) -> None:
    (nova.base / ".underlay").mkdir()
    (nova.base / ".underlay" / "format").write_text(content)

    finding = the(nova, code)

    assert Level.PROBLEM is finding.level
    assert finding.hint
    assert 3 == nova.run("check").status


def test_a_cache_that_is_not_there_is_a_problem_and_hides_no_other(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, extra=f'[caches.gone]\nkind = "base"\npath = "{tmp_path}/gone"\n')

    findings = found(machine)

    assert [(Level.PROBLEM, tmp_path / "gone")] == [(one.level, one.path) for one in findings if one.code == "cache-missing"]
    assert [machine.base] == [one.path for one in findings if one.code == "images"]
    assert 3 == machine.run("check").status


def test_a_file_in_the_caches_place_is_a_problem(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    machine.base.rmdir()
    machine.base.touch()

    assert ["cache-missing"] == codes(machine)


def test_missing_instances_are_a_warning(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    machine.instances.rmdir()

    finding = the(machine, "instances-missing")

    assert (Level.WARNING, machine.instances) == (finding.level, finding.path)
    assert 0 == machine.run("check").status


@pytest.mark.component("root", "tmpfs")
def test_a_read_only_file_system_is_a_problem(mounted: Callable[..., Path]) -> None:
    root = mounted("tmpfs", 64 * MIB)
    machine = Machine.make(root)
    machine.host().ensure(machine.raw_image(size=MIB, payload=0))
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)

    findings = of_code(machine, "cache-not-writable")

    private = machine.base / ".underlay"
    assert [machine.base, private, private / "locks"] == [finding.path for finding in findings]
    assert {Level.PROBLEM} == {finding.level for finding in findings}
    assert "instances-not-writable" in codes(machine)
    assert 3 == machine.run("check").status


@pytest.mark.component("root")
def test_a_user_without_rights_sees_what_it_may_and_is_told_what_it_may_not(short_directory: Path) -> None:
    machine = Machine.make(short_directory)
    machine.host().ensure(machine.raw_image())
    for path in (short_directory, machine.base, machine.instances):
        path.chmod(0o755)
    before = tree(short_directory)

    with start(check_codes, machine.config, user=NOBODY) as child:
        told = json.loads(child.hear())

    assert {"cache-not-writable", "instances-not-writable", "private-unreadable", "images", "laid-out"} <= set(told)
    assert before == tree(short_directory)


@pytest.mark.component("root")
def test_a_cache_that_may_not_even_be_read_is_a_problem(short_directory: Path) -> None:
    machine = Machine.make(short_directory)
    short_directory.chmod(0o755)
    machine.base.chmod(0o700)

    with start(check_codes, machine.config, user=NOBODY) as child:
        assert "cache-not-writable" in json.loads(child.hear())


def check_codes(config: str) -> None:
    tell(json.dumps([finding.code for finding in check_host(load_config(Path(config)))]))


@pytest.mark.component("root", "ramfs")
def test_a_file_system_without_attributes_is_a_warning(mounted: Callable[..., Path]) -> None:
    finding = the(Machine.make(mounted("ramfs")), "attributes-missing")

    assert Level.WARNING is finding.level


@pytest.mark.component("root", "tmpfs")
def test_little_room_is_a_warning(mounted: Callable[..., Path]) -> None:
    machine = Machine.make(mounted("tmpfs", 8 * MIB))
    assert [] == of_code(machine, "space-low")

    (machine.root / "large").write_bytes(bytes(8 * MIB - 256 * 1024))

    assert Level.WARNING is the(machine, "space-low").level


def test_the_lock_directory_is_looked_at(nova: Machine) -> None:
    assert "nova-locks-missing" in [finding.code for finding in found(nova)]

    (nova.instances / "locks").mkdir()

    assert [] == of_code(nova, "nova-locks-missing")


@pytest.mark.component("root")
def test_locks_and_images_of_another_owner_are_a_warning(nova: Machine) -> None:
    fill_as_nova_does(nova)
    os.chown(nova.instances / "locks", 1234, -1)
    os.chown(nova.base / SHA1, 2345, -1)

    findings = of_code(nova, "owner-differs")

    assert {nova.instances / "locks", nova.base / SHA1} == {finding.path for finding in findings}
    assert {Level.WARNING} == {finding.level for finding in findings}


# -------------------------------------------------------------------------------------------------------------------- contents


def dead_ingest(machine: Machine) -> Staging:
    staging = Staging(machine.base / ".underlay" / "tmp" / (64 * "a"))
    staging.directory.mkdir()
    staging.download.write_bytes(bytes(3 * MIB))
    write_reservation(staging, GIB)
    return staging


def test_a_dead_ingest_is_told_with_what_it_occupies_and_not_touched(nova: Machine) -> None:
    nova.host().ensure(nova.raw_image())
    staging = dead_ingest(nova)

    finding = the(nova, "dead-ingests")

    assert (Level.INFO, nova.base / ".underlay" / "tmp") == (finding.level, finding.path)
    assert finding.detail.startswith("1 dead ingest of 3.0 MiB")
    assert staging.download.exists()


def test_trash_is_a_warning(nova: Machine) -> None:
    nova.host().ensure(nova.raw_image())
    (nova.base / ".underlay" / "trash" / SHA1).touch()

    assert Level.WARNING is the(nova, "trash-left").level


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "directory", "fifo"])
def test_what_stands_in_an_images_place_is_a_problem(nova: Machine, kind: str) -> None:
    match kind:
        case "symlink":
            (nova.base / SHA1).symlink_to("/etc/passwd")
        case "dangling symlink":
            (nova.base / SHA1).symlink_to("/nowhere")
        case "directory":
            (nova.base / SHA1).mkdir()
        case _:
            os.mkfifo(nova.base / SHA1)

    finding = the(nova, "not-an-image")

    assert (Level.PROBLEM, nova.base / SHA1) == (finding.level, finding.path)


@pytest.mark.component("qemu-img")
def test_an_unrecorded_image_that_breaks_a_rule_is_a_problem(nova: Machine) -> None:
    evil = nova.base / SHA1
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", evil, "1M"], check=True)

    finding = the(nova, "unsafe-image")

    assert (Level.PROBLEM, nova.base / SHA1) == (finding.level, finding.path)
    assert "backing" in finding.detail


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o777])
def test_an_image_that_others_may_write_is_a_warning(nova: Machine, mode: int) -> None:
    fill_as_nova_does(nova)
    (nova.base / SHA1).chmod(mode)

    finding = the(nova, "mode-unsafe")

    assert (Level.WARNING, nova.base / SHA1) == (finding.level, finding.path)
    assert f"{mode:04o}" in finding.detail


def test_a_cache_that_everybody_may_write_is_a_warning(nova: Machine) -> None:
    nova.base.chmod(0o777)

    assert nova.base == the(nova, "mode-unsafe").path
    nova.base.chmod(0o1777)
    assert [] == of_code(nova, "mode-unsafe")


def test_leftovers_and_strangers_are_counted(nova: Machine) -> None:
    fill_as_nova_does(nova)

    assert the(nova, "leftovers").detail.startswith("2 files")
    assert the(nova, "foreign-files").detail.startswith("1 name")


# ----------------------------------------------------------------------------------------------------------------------- disks


@pytest.mark.component("qemu-img")
def test_an_overlay_whose_base_is_gone_is_a_problem(nova: Machine) -> None:
    host = nova.host()
    disk = host.create_disk("web-1", nova.raw_image())
    host.create_disk("web-2", nova.raw_image(), backend="flat")
    assert disk.base_path is not None
    disk.base_path.unlink()

    finding = the(nova, "base-missing")

    assert (Level.PROBLEM, disk.path) == (finding.level, finding.path)
    assert str(disk.base_path) in finding.detail


def test_a_disk_that_nothing_records_is_a_warning(nova: Machine) -> None:
    (nova.instances / "web-1").mkdir()
    (nova.instances / "web-1" / "disk").touch()

    finding = the(nova, "disk-unrecorded")

    assert (Level.WARNING, nova.instances / "web-1" / "disk") == (finding.level, finding.path)


# ---------------------------------------------------------------------------------------------------------------------- rivals


@contextmanager
def running(name: str, directory: Path, *, by_interpreter: bool = False) -> Iterator[int]:
    """A process that is called so: a program, or a script that an interpreter runs; its number."""
    program = directory / name
    if by_interpreter:
        program.write_text("echo ready; read line\n")
        argv = ["/bin/sh", os.fspath(program)]
    else:
        program.symlink_to(shutil.which("cat") or "/bin/cat")
        argv = [os.fspath(program)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            if not by_interpreter:  # cat says it back, the script by itself
                process.stdin.write(b"ready\n")
                process.stdin.flush()
            assert b"ready\n" == process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def rivals(machine: Machine, pid: int) -> list[Finding]:
    return [finding for finding in of_code(machine, "rival-running") if str(pid) in re.split(r"\D+", finding.detail)]


@pytest.mark.parametrize("by_interpreter", [False, True])
def test_a_running_nova_is_a_warning_for_its_base(nova: Machine, *, by_interpreter: bool) -> None:
    with running("nova-compute", nova.root, by_interpreter=by_interpreter) as pid:
        (finding,) = rivals(nova, pid)
    assert [] == rivals(nova, pid)

    assert (Level.WARNING, nova.base) == (finding.level, finding.path)
    assert "nova-compute" in finding.detail
    assert "remove_unused_base_images=false" in str(finding.hint)


def test_a_running_ironic_is_a_warning_for_masters_only(tmp_path: Path) -> None:
    (tmp_path / "masters").mkdir()
    machine = Machine.make(tmp_path, extra=f'[caches.masters]\nkind = "masters"\npath = "{tmp_path}/masters"\n')

    with running("ironic-conductor", tmp_path) as pid:
        (finding,) = rivals(machine, pid)

    assert tmp_path / "masters" == finding.path
    assert "nova" not in str(finding.hint)


def test_a_process_that_only_sounds_like_it_is_no_rival(nova: Machine) -> None:
    with running("nova-compute-exporter", nova.root) as pid:
        assert [] == rivals(nova, pid)


@pytest.mark.parametrize(
    ("registry", "is_active"),
    [
        (lambda now: json.dumps({"node1": now - 60, "node2": now - 90000}), True),
        (lambda now: json.dumps({"node1": now + 60}), True),
        (lambda now: json.dumps({"node1": now - 90000}), False),
        (lambda now: "{}", False),
        (lambda now: "{", False),
        (lambda now: "[]", False),
        (lambda now: '{"node1": "soon"}', False),
        (lambda now: '{"node1": null}', False),
    ],
)
def test_a_manager_of_novas_that_passed_lately_is_a_warning(
    nova: Machine, registry: Callable[[float], str], *, is_active: bool
) -> None:
    (nova.instances / "compute_nodes").write_text(registry(time.time()))

    findings = of_code(nova, "rival-active")

    assert is_active is bool(findings)
    assert all((Level.WARNING, nova.instances / "compute_nodes") == (one.level, one.path) for one in findings)


def test_a_manager_elsewhere_is_no_rival(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    (machine.instances / "compute_nodes").write_text(json.dumps({"node1": time.time()}))

    assert [] == of_code(machine, "rival-active")


def test_it_is_told_whether_novas_locks_are_taken(nova: Machine, tmp_path: Path) -> None:
    assert (Level.INFO, nova.instances / "locks") == (the(nova, "nova-locks-used").level, the(nova, "nova-locks-used").path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = tmp_path / "elsewhere.toml"
    config.write_text(
        f'[instances]\npath = "{nova.instances}"\n[caches.base]\nkind = "base"\npath = "{elsewhere}"\n', encoding="utf-8"
    )
    codes_elsewhere = {finding.code for finding in check_host(load_config(config))}
    assert "nova-locks-unused" in codes_elsewhere
    assert "nova-locks-used" not in codes_elsewhere


def hosted(machine: Machine, name: str = "node1", *, hosts: str = "[]") -> Machine:
    """The machine with a name of its own, and with the hosts that share its storage."""
    text = machine.config.read_text().replace("[instances]\n", f"[instances]\nhosts = {hosts}\n")
    machine.config.write_text(f'host = "{name}"\n{text}')
    return machine


def quiet() -> None:
    """Wait until no other test runs a process that is called like Nova's."""
    deadline = time.monotonic() + 60
    while "nova-compute" in check._running_rivals():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.component("leases")
def test_what_our_own_prune_notes_for_nova_is_no_rival(nova: Machine) -> None:
    hosted(nova).call("prune")
    assert '"node1"' in (nova.instances / "compute_nodes").read_text()

    quiet()

    assert [] == of_code(nova, "rival-active")


def test_what_a_running_nova_notes_under_our_name_is_a_rival(nova: Machine) -> None:
    (nova.instances / "compute_nodes").write_text(json.dumps({"node1": time.time()}))

    with running("nova-compute", hosted(nova).root):
        assert Level.WARNING == the(nova, "rival-active").level


def test_what_another_hosts_prune_notes_is_no_rival_and_what_its_nova_notes_is_one(nova: Machine) -> None:
    hosted(nova, "node2", hosts='["node1", "node2"]').call("prune")
    nova.config.write_text(nova.config.read_text().replace('host = "node2"', 'host = "node1"'))
    assert [] == of_code(nova, "rival-active")

    (nova.instances / "compute_nodes").write_text(json.dumps({"node2": time.time() + 1000}))

    assert Level.WARNING == the(nova, "rival-active").level


# --------------------------------------------------------------------------------------------------------------- a first prune


def test_what_a_first_prune_would_do_is_told_with_counts_and_bytes(nova: Machine) -> None:
    fill_as_nova_does(hosted(nova))
    (nova.instances / "compute_nodes").unlink()
    old = time.time() - 10 * 86400
    for name in (SHA1, "swap_512", f"{SHA1}.part"):
        os.utime(nova.base / name, (old, old))
    before = tree(nova.root)

    assert (Level.INFO, nova.base) == ((goes := the(nova, "prune-removes")).level, goes.path)
    assert "a prune would remove 3 files of 20.0 KiB: 2 unused, 1 abandoned" == goes.detail
    stays = the(nova, "prune-keeps")
    assert (Level.INFO, "a prune would keep 3 files of 20.0 KiB: 3 young") == (stays.level, stays.detail)
    assert Level.INFO is the(nova, "no-inventory").level
    assert before == tree(nova.root)


def test_hosts_that_are_not_declared_are_told_with_what_to_do(nova: Machine) -> None:
    fill_as_nova_does(hosted(nova, "node7"))

    finding = the(nova, "hosts-undeclared")

    assert (Level.WARNING, nova.base) == (finding.level, finding.path)
    assert "node1" in finding.detail
    assert finding.detail.endswith("everything is kept")
    assert "instances.hosts" in str(finding.hint)
    assert "6 files" in the(nova, "prune-keeps").detail
    assert [] == of_code(nova, "prune-removes")


def test_a_host_that_is_not_among_those_that_share_its_storage_is_told(nova: Machine) -> None:
    hosted(nova, "node3", hosts='["node1", "node2"]')

    assert (Level.WARNING, nova.config) == ((finding := the(nova, "host-unnamed")).level, finding.path)
    assert "node3" in finding.detail
    nova.config.write_text(nova.config.read_text().replace('"node2"]', '"node2", "node3"]'))
    assert [] == of_code(nova, "host-unnamed")


def test_an_inventory_that_does_not_answer_is_told_once(nova: Machine) -> None:
    fill_as_nova_does(hosted(nova))
    nova.config.write_text(nova.config.read_text().replace("[instances]\n", '[instances]\ninventory = "file:/nowhere"\n'))

    assert Level.WARNING is the(nova, "inventory-unavailable").level
    assert [] == of_code(nova, "no-inventory")


def test_an_inventory_that_nobody_provides_is_a_problem(nova: Machine) -> None:
    nova.config.write_text(nova.config.read_text().replace("[instances]\n", '[instances]\ninventory = "abacus:here"\n'))

    assert Level.PROBLEM is the(nova, "config-error").level


def test_a_directory_of_instances_that_may_not_be_read_is_told_once(nova: Machine) -> None:
    fill_as_nova_does(hosted(nova))
    (nova.instances / "web-2").mkdir()
    os.mkfifo(nova.instances / "web-2" / "disk")

    findings = [finding for finding in found(nova) if "web-2" in f"{finding.path}{finding.detail}"]

    assert len(findings) == len({(finding.code, finding.path) for finding in findings})


@pytest.mark.component("root", "tmpfs")
def test_a_moved_directory_of_instances_is_told_until_it_is_accepted(mounted: Callable[..., Path], tmp_path: Path) -> None:
    machine = hosted(Machine.make(tmp_path))
    for name in ("web-1", "web-2"):
        (machine.instances / name).mkdir()
    machine.call("prune")
    (machine.base / SHA1).write_bytes(b"an image" * 1024)
    os.utime(machine.base / SHA1, (0, 0))
    apart = mounted("tmpfs")
    subprocess.run(["mount", "--bind", apart, machine.instances], check=True)
    try:
        told = of_code(machine, "root-empty") + of_code(machine, "root-moved")
        assert [Level.WARNING] == [finding.level for finding in told]
        assert "underlay check --accept" in str(told[0].hint)
        assert [] == of_code(machine, "prune-removes")

        machine.call("check", "--accept", "--json")

        assert [] == of_code(machine, "root-empty") + of_code(machine, "root-moved")
        assert "1 file" in the(machine, "prune-removes").detail
    finally:
        subprocess.run(["umount", machine.instances], check=True)
