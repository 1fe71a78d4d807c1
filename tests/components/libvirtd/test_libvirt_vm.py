"""``underlay vm`` on a real libvirt: machines of images that are in the cache, from the first line to the last."""

import hashlib
import json
import os
import re
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from echo_guest import GREETING, write_echo_image
from libvirt_daemon import Daemon, quiet_library
from libvirt_stage import PATIENCE, command, wait_until

from machine import GIB, MIB, Ended, Machine, command_line, on_terminal, plain, run
from schemas import keeps
from underlay.inventory.libvirt import LibvirtInventory
from underlay.model import Ephemeral
from underlay.testing.bootimage import boot_line, write_qcow2
from underlay.testing.httpserver import Served, serving
from underlay.vm.record import NAMESPACE

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

MESSAGE = "a virtual machine"
DOMAIN = "<domain type='qemu'><name>{name}</name><memory>65536</memory><os><type>hvm</type></os>{more}</domain>"


def options(uri: str, more: str = "") -> str:
    """Without screens: their ports are chosen by each libvirt of the machine for itself, of which there are several here."""
    return f'[libvirt]\nconnection_uri = "{uri}"\nvirt_type = "qemu"\nvnc_enabled = false\n{more}'


@pytest.fixture
def machine(daemon: Daemon, tmp_path: Path) -> Iterator[Machine]:
    """A host whose machines are all gone afterwards."""
    machine = Machine.make(
        tmp_path,
        options='keep_recent = "0s"\nremove_unused_original_minimum_age_seconds = 0',
        extra=options(daemon.uri),
    )
    yield machine
    for one in machine.call("vm", "list", "--json").json["vms"]:
        assert 0 == machine.call("vm", "delete", one["name"], "--yes").status
    assert [] == domains(daemon)


@pytest.fixture
def image(machine: Machine) -> str:
    """The ref of an image that writes a line and stays until its power button is pressed."""
    path = machine.root / "guest.qcow2"
    write_qcow2(path, size=16 * MIB, message=MESSAGE, stays=True)
    return path.as_uri()


def create(machine: Machine, name: str, image: str, *more: str | Path) -> Any:
    ended = machine.call("vm", "create", name, "--image", image, "--memory", "32MiB", "--json", *more)
    assert 0 == ended.status, ended
    keeps("vm", ended.json)
    return ended.json["vm"]


def answered(machine: Machine, schema: str, *arguments: str | Path) -> Any:
    ended = machine.call("vm", *arguments, "--json")
    assert 0 == ended.status, ended
    keeps(schema, ended.json)
    return ended.json


def await_boot(vm: Any) -> None:
    log = Path(vm["console_log"])
    line = f"{boot_line(MESSAGE)}\r\n".encode()
    wait_until(lambda: log.exists() and line in log.read_bytes(), f"{vm['name']} boots")


def lasting(vm: Any) -> Any:
    """What is told of a machine, but for what its disks occupy."""
    return vm | {"disks": [disk | {"allocated": None} for disk in vm["disks"]]}


def domains(daemon: Daemon) -> list[str]:
    connection = quiet_library().open(daemon.uri)
    try:
        return sorted(domain.name() for domain in connection.listAllDomains(0))
    finally:
        connection.close()


def left(machine: Machine) -> list[str]:
    """What is in the instances path of instances."""
    return sorted(name for name in os.listdir(machine.instances) if name != ".underlay-claims")


@contextmanager
def foreign(daemon: Daemon, name: str, more: str = "") -> Iterator[None]:
    """A domain that somebody else has defined."""
    connection = quiet_library().open(daemon.uri)
    try:
        domain = connection.defineXML(DOMAIN.format(name=name, more=more))
        yield
        domain.undefine()
    finally:
        connection.close()


# -------------------------------------------------------------------------------------------------------------------- the life


@pytest.mark.component("virsh")
def test_the_life_of_a_machine(machine: Machine, daemon: Daemon, image: str) -> None:
    made = create(machine, "web", image, "--wait")
    await_boot(made)  # the command waits for the first word
    assert ("web", "running", "qemu", image, 32 * MIB, 1, []) == tuple(
        made[key] for key in ("name", "state", "virt_type", "image", "memory", "vcpus", "interfaces")
    )
    assert [("disk", "qcow2", 16 * MIB)] == [(one["name"], one["backend"], one["size"]) for one in made["disks"]]
    told = subprocess.run(["virsh", "-c", daemon.uri, "list", "--all"], capture_output=True, text=True, check=True).stdout
    assert re.search(r"\bweb +running\b", told)

    [listed] = answered(machine, "vm-list", "list")["vms"]
    by_name, by_uuid = (answered(machine, "vm", "show", one)["vm"] for one in ("web", made["uuid"]))
    assert [lasting(made)] * 3 == [lasting(one) for one in (listed, by_name, by_uuid)]
    written = answered(machine, "vm-console", "console", "web")
    assert boot_line(MESSAGE) in written["output"]
    assert f"{boot_line(MESSAGE)}\n" in machine.run("vm", "console", "web", "--output").out.replace("\r", "")

    assert "running" == answered(machine, "vm", "start", "web")["vm"]["state"]
    assert "shutdown" == answered(machine, "vm", "stop", "web")["vm"]["state"]
    assert "shutdown" == answered(machine, "vm", "stop", "web", "--force")["vm"]["state"]
    assert "running" == answered(machine, "vm", "start", "web")["vm"]["state"]
    await_boot(made)  # before that it knows of no power button
    assert "running" == answered(machine, "vm", "reboot", "web")["vm"]["state"]
    assert lasting(made) == lasting(answered(machine, "vm", "reboot", "web", "--hard")["vm"])
    assert "shutdown" == answered(machine, "vm", "stop", "web", "--force")["vm"]["state"]

    deleted = answered(machine, "vm-delete", "delete", "web", "--yes")["deleted"]
    assert {"name": "web", "uuid": made["uuid"]} == deleted
    assert ([], [], []) == (left(machine), domains(daemon), machine.host().disks())
    assert 1 == len(machine.host().images()[0])


def test_people_are_told_in_sentences_and_tables(machine: Machine, image: str) -> None:
    assert "No virtual machines.\n" == machine.call("vm", "list").out
    created = machine.call("vm", "create", "web", "--image", image, "--memory", "32MiB", "--no-start")
    assert "web (shutdown, 1 processor, 32.0 MiB, without a network)\n" == created.out
    head, row = machine.call("vm", "list").out.splitlines()
    assert ["NAME", "STATE", "VCPUS", "MEMORY", "DISK", "NETWORK", "IMAGE"] == head.split()
    assert ["web", "shutdown", "1", "32.0", "MiB", "16.0", "MiB", "-", image] == row.split()
    shown = machine.call("vm", "show", "web").out
    assert all(word in shown for word in ("shutdown", image, "1 virtual processor, 32.0 MiB of memory", "1 disk, 0 interfaces"))
    assert "deleted web\n" == machine.call("vm", "delete", "web", "--yes").out


def test_the_list_fits_a_terminal(machine: Machine, image: str) -> None:
    create(machine, "a-machine-with-a-rather-long-name-of-its-own", image, "--no-start")
    status, sent = on_terminal(machine.argv("vm", "list"))
    lines = plain(sent).splitlines()
    assert (0, 2) == (status, len(lines))
    assert max(map(len, lines)) <= 80
    assert image in plain(on_terminal(machine.argv("vm", "list", "--wide"))[1])


def test_a_machine_of_an_image_that_is_here_needs_no_source(machine: Machine, tmp_path: Path) -> None:
    served = tmp_path / "served.qcow2"
    write_qcow2(served, size=16 * MIB, message=MESSAGE, stays=True)
    with serving({"/guest.qcow2": Served(served, etag='"1"')}) as server:
        ref = server.url("/guest.qcow2")
        secret = ref.replace("://", "://user:s3cret@")
        create(machine, "by-ref", secret, "--no-start")
    [base] = machine.host().images()[0]

    made = create(machine, "by-name", base.name, "--no-start")
    by_path = create(machine, "by-path", str(base.path), "--no-start", "--format", "raw")

    assert [ref, ref] == [one["image"] for one in (made, by_path)]
    assert [str(base.path)] == [one["base_path"] for one in made["disks"]]
    assert ["flat"] == [one["backend"] for one in by_path["disks"]]
    assert "s3cret" not in machine.call("vm", "show", "by-ref", "--json").out
    connection = quiet_library().open(machine.host().config.libvirt.connection_uri)
    assert "s3cret" not in connection.lookupByName("by-ref").XMLDesc(0)
    connection.close()


def test_a_machine_is_made_of_the_very_image_that_a_checksum_is_of(machine: Machine, daemon: Daemon, tmp_path: Path) -> None:
    served = tmp_path / "guest.qcow2"
    write_qcow2(served, size=16 * MIB, message=MESSAGE, stays=True)
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  guest.qcow2\n")
    with serving({"/guest.qcow2": Served(served, etag='"1"'), "/SHA256SUMS": Served(tmp_path / "SHA256SUMS")}) as server:
        ref = server.url("/guest.qcow2")
        wrong = machine.call("vm", "create", "web", "--image", ref, "--checksum", f"sha256:{'0' * 64}", "--json")
        assert (30, "digest-mismatch") == (wrong.status, wrong.error["code"])
        assert ([], []) == (left(machine), domains(daemon))
        by_digest = create(machine, "web", ref, "--no-start", "--checksum", f"sha256:{digest}")
        by_list = create(machine, "web-2", ref, "--no-start", "--checksum", server.url("/SHA256SUMS"), "--format", "raw")
    [base] = machine.host().images()[0]
    assert [ref, ref] == [one["image"] for one in (by_digest, by_list)]
    assert [str(base.path)] == [one["base_path"] for one in by_digest["disks"]]
    by_name = machine.call("vm", "create", "web-3", "--image", base.name, "--checksum", f"sha256:{digest}", "--json")
    assert (10, "invalid-ref") == (by_name.status, by_name.error["code"])


@pytest.mark.component("mkfs.ext4")
def test_a_machine_has_all_disks_that_it_was_to_have_and_the_inventory_knows_them(
    machine: Machine, daemon: Daemon, image: str
) -> None:
    more = ["--size", "2GiB", "--ephemeral", "1GiB", "--ephemeral", "2GiB", "--swap", "64MiB", "--vcpus", "2", "--no-start"]
    made = create(machine, "db", image, *more, "--property", "hw_disk_bus=scsi")

    sizes = {"disk": 2 * GIB, "disk.eph0": GIB, "disk.eph1": 2 * GIB, "disk.swap": 64 * MIB}
    assert sizes == {disk["name"]: disk["size"] for disk in made["disks"]}
    [record] = LibvirtInventory(daemon.uri, host="node1", hosts=["node1"]).instances()
    assert (made["uuid"], image, (64,), "linux") == (record.uuid, record.image_ref, record.swap_mib, record.os_type)
    assert {Ephemeral(size_gib=1), Ephemeral(size_gib=2)} <= set(record.ephemerals)
    assert {disk["path"] for disk in made["disks"]} <= {str(one.path) for one in record.disks}
    assert "running" == answered(machine, "vm", "reboot", "db", "--hard")["vm"]["state"]
    connection = quiet_library().open(daemon.uri)
    described = connection.lookupByName("db").XMLDesc(0)
    connection.close()
    assert ["sda", "sdb", "sdc", "sdd"] == sorted(re.findall(r"<target dev='(sd.)' bus='scsi'/>", described))


def test_a_guest_is_told_its_name_its_key_and_its_user_data(machine: Machine, image: str) -> None:
    (machine.root / "key.pub").write_text("# mine\nssh-ed25519 AAAAC3Nza me@here\n")
    (machine.root / "data.yaml").write_bytes(b"#cloud-config\nhostname: \xc3\xa4\n")
    with_all = create(
        machine, "web", image, "--no-start", "--ssh-key", machine.root / "key.pub", "--user-data", machine.root / "data.yaml"
    )
    without = create(machine, "bare", image, "--no-start", "--no-config-drive")

    drive = machine.instances / with_all["uuid"] / "disk.config"
    told = json.loads(of_drive(drive, "meta_data.json"))
    assert ("web", "web", ["ssh-ed25519 AAAAC3Nza me@here"]) == (
        told["name"],
        told["hostname"],
        list(told["public_keys"].values()),
    )
    assert b"#cloud-config\nhostname: \xc3\xa4\n" == of_drive(drive, "user_data")
    assert not (machine.instances / without["uuid"] / "disk.config").exists()


def of_drive(drive: Path, name: str) -> bytes:
    iso, read = import_module("pycdlib").PyCdlib(), BytesIO()
    with drive.open("rb") as file:
        iso.open_fp(file)
        iso.get_file_from_iso_fp(read, joliet_path=f"/openstack/latest/{name}")
        iso.close()
    return read.getvalue()


@pytest.mark.component("ip")
def test_an_interface_is_plugged_and_its_address_is_told(machine: Machine, image: str, bridge: str) -> None:
    made = create(machine, "web", image, "--bridge", bridge, "--bridge", bridge)
    first, second = made["interfaces"]
    assert (bridge, None, []) == (first["bridge"], first["network"], first["ip_addresses"])
    assert first["address"] != second["address"]
    assert 2 == len(list(Path("/sys/class/net", bridge, "brif").iterdir()))
    [links] = [json.loads(of_drive(machine.instances / made["uuid"] / "disk.config", "network_data.json"))]
    assert ["ipv4_dhcp", "ipv4_dhcp"] == [one["type"] for one in links["networks"]]

    command("ip", "neigh", "replace", "192.0.2.7", "lladdr", first["address"], "dev", bridge, "nud", "permanent")
    try:
        assert ["192.0.2.7"] == answered(machine, "vm", "show", "web")["vm"]["interfaces"][0]["ip_addresses"]
        assert "192.0.2.7" in machine.call("vm", "list").out
        assert f"{first['address']} in {bridge}: 192.0.2.7" in machine.call("vm", "show", "web").out
    finally:
        command("ip", "neigh", "delete", "192.0.2.7", "dev", bridge)
    again = answered(machine, "vm", "reboot", "web", "--hard")["vm"]
    assert [first["address"], second["address"]] == [one["address"] for one in again["interfaces"]]
    assert 2 == len(list(Path("/sys/class/net", bridge, "brif").iterdir()))


@pytest.mark.component("ip")
def test_networks_of_libvirt_are_found_by_their_bridges(machine: Machine, daemon: Daemon, image: str, bridge: str) -> None:
    xml = "<network><name>{name}</name><forward mode='bridge'/><bridge name='{bridge}'/></network>"
    connection = quiet_library().open(daemon.uri)
    default, lab = (connection.networkDefineXML(xml.format(name=name, bridge=bridge)) for name in ("default", "lab"))
    try:
        assert [] == create(machine, "before", image, "--no-start")["interfaces"]
        default.create()
        [by_default] = create(machine, "by-default", image, "--no-start")["interfaces"]
        assert (bridge, "default") == (by_default["bridge"], by_default["network"])
        assert [] == create(machine, "alone", image, "--no-start", "--no-network")["interfaces"]
        down = machine.call("vm", "create", "web", "--image", image, "--network", "lab", "--json")
        assert (96, "the network lab cannot be used: it is not up") == (down.status, down.error["message"])
        lab.create()
        both = create(machine, "both", image, "--no-start", "--network", "lab", "--bridge", bridge)["interfaces"]
        assert [None, "lab"] == [one["network"] for one in both]
        assert f"in lab ({bridge})" in machine.call("vm", "show", "both").out
    finally:
        for network in (default, lab):
            if network.isActive():
                network.destroy()
            network.undefine()
        connection.close()


def test_why_guests_are_emulated_is_an_event(machine: Machine, image: str) -> None:
    config = machine.config.read_text()
    machine.config.write_text(config.replace('virt_type = "qemu"', 'virt_type = "auto"'))
    ended = machine.call("--log-format", "json", "vm", "create", "web", "--image", image, "--memory", "32MiB", "--no-start")
    events = [json.loads(line) for line in ended.err.splitlines()]
    assert 0 == ended.status
    assert "published" in {event["event"] for event in events}
    if Path("/dev/kvm").exists() and "kvm" != answered(machine, "vm", "show", "web")["vm"]["virt_type"]:
        assert ["warning"] == [event["level"] for event in events if event["event"] == "hypervisor"]


def test_a_snapshot_is_an_image_for_other_machines(machine: Machine, image: str) -> None:
    made = create(machine, "web", image, "--wait")
    target = machine.root / "golden.qcow2"
    assert {"snapshot": str(target)} == answered(machine, "vm-snapshot", "snapshot", "web", target)
    again = machine.call("vm", "snapshot", "web", target, "--json")
    assert (51, "disk-exists") == (again.status, again.error["code"])
    by_itself = Path(answered(machine, "vm-snapshot", "snapshot", "web", "--format", "raw")["snapshot"])
    assert (machine.instances / "snapshots", 16 * MIB) == (by_itself.parent, by_itself.stat().st_size)
    by_name = Path(answered(machine, "vm-snapshot", "snapshot", "web", machine.root / "golden.raw")["snapshot"])
    assert by_itself.read_bytes()[:512] == by_name.read_bytes()[:512]  # a boot sector, no header
    as_in_glance = machine.call("vm", "snapshot", "web", machine.root / made["uuid"], "--json")
    assert (14, "invalid-name") == (as_in_glance.status, as_in_glance.error["code"])
    answered(machine, "vm-delete", "delete", "web", "--yes")

    await_boot(create(machine, "web-2", target.as_uri(), "--wait"))
    assert boot_line(MESSAGE) in answered(machine, "vm-console", "console", "web-2")["output"]


def test_a_prune_keeps_the_base_of_a_machine_that_is_off_and_not_that_of_one_that_is_gone(
    machine: Machine, daemon: Daemon, image: str
) -> None:
    text = machine.config.read_text()
    machine.config.write_text(text.replace("[instances]\n", f'[instances]\ninventory = "libvirt:{daemon.uri}"\n'))
    create(machine, "web", image, "--no-start")
    [base] = machine.host().images()[0]

    kept = machine.call("prune", "--json").json
    assert ([], []) == (kept["removed"], kept["problems"])
    [verdict] = kept["plan"]
    assert {"backing-file", "instance-image"} <= {reason["code"] for reason in verdict["reasons"]}

    answered(machine, "vm-delete", "delete", "web", "--yes")
    assert [str(base.path)] == machine.call("prune", "--json").json["removed"]
    assert not base.path.exists()


# --------------------------------------------------------------------------------------------------------------------- console


class Terminal:
    """A command on a terminal of its own, at which somebody types."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.ours, its = os.openpty()
        self.mode = termios.tcgetattr(self.ours)
        self.process = subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, start_new_session=True)
        self.its = its  # kept open, so that what the terminal is left as can be looked at
        self.seen = bytearray()

    def await_text(self, text: str) -> None:
        os.set_blocking(self.ours, False)

        def is_there() -> bool:
            with suppress(BlockingIOError):
                self.seen += os.read(self.ours, 1 << 16)
            return text.encode() in self.seen

        wait_until(is_there, f"{text!r} on the terminal, where there is {bytes(self.seen)!r}")

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def end(self) -> int:
        status = self.process.wait(PATIENCE)
        assert self.mode == termios.tcgetattr(self.ours)
        for fd in (self.ours, self.its):
            os.close(fd)
        return status


@pytest.mark.parametrize("more", ["", "serial_console_enabled = true"])
def test_somebody_types_at_the_serial_line(machine: Machine, daemon: Daemon, more: str) -> None:
    machine.config.write_text(machine.config.read_text() + f"\n{more}\n")
    write_echo_image(machine.root / "echo.raw")
    create(machine, "web", f"file://{machine.root}/echo.raw", "--wait")

    terminal = Terminal(machine.argv("vm", "console", "web"))
    terminal.await_text("at web; Ctrl+] leaves")
    terminal.await_text(GREETING)
    terminal.type("hello \x03guest\n")
    terminal.await_text("hello \x03guest\n")
    terminal.type("\x1d")
    terminal.await_text("web runs on")
    assert 0 == terminal.end()
    assert 1 == terminal.seen.count(GREETING.encode())

    assert terminal.seen.rindex(b"\x1b[?7h") > terminal.seen.rindex(b"guest")  # what a guest made of it is undone

    ended = Terminal(machine.argv("vm", "console", "web"))
    ended.await_text("hello guest\r\n")  # what was written before, as text
    ended.type("more")
    ended.await_text("more")
    ended.process.send_signal(signal.SIGTERM)
    assert 130 == ended.end()

    off = Terminal(machine.argv("vm", "console", "web"))
    off.await_text("at web")
    answered(machine, "vm", "stop", "web", "--force")
    off.await_text("web is off")
    assert 0 == off.end()


def test_a_terminal_obeys_nothing_of_what_was_written_before(machine: Machine) -> None:
    write_echo_image(machine.root / "echo.raw")
    made = create(machine, "web", f"file://{machine.root}/echo.raw", "--wait")
    with Path(made["console_log"]).open("ab") as log:
        log.write(b"\x1b[6nasked\x1b]0;title\x07\r\n")
    status, sent = on_terminal(machine.argv("vm", "console", "web", "--output"))
    assert (0, True, False) == (status, b"asked\r" in sent.encode(), "\x1b" in sent)
    assert "\x1b[6nasked" in machine.run("vm", "console", "web", "--output").out

    terminal = Terminal(machine.argv("vm", "console", "web"))
    terminal.await_text("asked\r")
    assert b"\x1b" not in terminal.seen
    terminal.type("\x1b[6n")
    terminal.await_text("\x1b[6n")  # from here on they understand each other
    terminal.type("\x1d")
    assert 0 == terminal.end()


def test_only_one_types_at_a_time(machine: Machine) -> None:
    write_echo_image(machine.root / "echo.raw")
    create(machine, "web", f"file://{machine.root}/echo.raw", "--wait")
    first = Terminal(machine.argv("vm", "console", "web"))
    first.await_text("leaves")
    second = Terminal(machine.argv("vm", "console", "web"))
    second.await_text("underlay: libvirt refuses")
    assert 96 == second.end()
    first.type("\x1d")
    assert 0 == first.end()


def test_who_can_type_no_more_is_told(machine: Machine, daemon: Daemon) -> None:
    write_echo_image(machine.root / "echo.raw")
    create(machine, "web", f"file://{machine.root}/echo.raw", "--wait")
    terminal = Terminal(machine.argv("vm", "console", "web"))
    terminal.await_text(GREETING)
    library = quiet_library()
    connection = library.open(daemon.uri)
    stream = connection.newStream(0)
    connection.lookupByName("web").openConsole(None, stream, library.VIR_DOMAIN_CONSOLE_FORCE)
    terminal.await_text("what is typed does not reach the serial line any more")
    assert 96 == terminal.end()
    stream.abort()
    connection.close()


def test_without_a_terminal_the_console_is_followed_until_the_machine_is_off(machine: Machine, image: str) -> None:
    refused = machine.call("vm", "create", "web", "--image", image, "--memory", "32MiB", "--no-start", "--wait")
    assert (2, "") == (refused.status, refused.out)
    create(machine, "web", image, "--no-start")
    early = machine.call("vm", "console", "web", "--json")
    assert (0, "") == (early.status, early.json["output"])
    off = machine.call("vm", "console", "web")
    assert 92 == off.status
    assert "underlay: web is shutdown" in off.err

    made = answered(machine, "vm", "start", "web")["vm"]
    await_boot(made)
    follower = machine.start("vm", "console", "web")
    assert follower.stdout is not None
    assert boot_line(MESSAGE) in follower.stdout.readline()
    answered(machine, "vm", "stop", "web")
    out, err = follower.communicate(timeout=PATIENCE)
    assert (0, "", "") == (follower.returncode, out, err)


def test_a_machine_that_says_nothing_is_waited_for_in_vain(machine: Machine) -> None:
    (machine.root / "mute.raw").write_bytes((b"\xfa\xf4" + bytes(508) + b"\x55\xaa").ljust(16 * MIB, b"\0"))
    arguments = ["--image", f"file://{machine.root}/mute.raw", "--memory", "32MiB", "--wait", "--timeout", "2s"]
    ended = machine.call("vm", "create", "web", *arguments, "--json")
    assert (96, "operation-failed") == (ended.status, ended.error["code"])
    assert "web has written nothing to its serial line for 2 s" == ended.error["message"]
    assert "running" == answered(machine, "vm", "show", "web")["vm"]["state"]


# -------------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("more", "status", "code", "told"),
    [
        (["--bridge", "ul-nowhere"], 96, "virtual-interface-plug-exception", "the bridge ul-nowhere is not there"),
        (["--bridge", "../../x"], 96, "virtual-interface-plug-exception", "is not there"),
        (["--network", "lab"], 96, "virtual-interface-plug-exception", "the network lab cannot be used"),
        (["--image", "LARGE", "--size", "1GiB"], 50, "disk-too-small", "2147483648"),
        (["--size", "1500MiB"], 13, "invalid-size", "the root disk cannot be 1500MiB"),
        (["--memory", "1"], 13, "invalid-size", "unit"),
        (["--memory", "0MiB"], 13, "invalid-size", "the memory cannot be"),
        (["--memory", "4TiB"], 96, "operation-failed", "libvirt refuses"),
        (["--swap", "1KiB"], 13, "invalid-size", "the swap disk"),
        (["--ephemeral", "1MiB"], 13, "invalid-size", "an ephemeral disk"),
        (["--ephemeral", "1GiB"] * 25, 13, "invalid-size", "25 ephemeral disks"),
        (["--image", "nothing"], 10, "invalid-ref", "nothing"),
        (["--image", "abcdef"], 40, "not-cached", "means 2 images"),
        (["--image", "file:nothing"], 10, "invalid-ref", "file:nothing"),
        (["--image", "file:///nowhere/image.qcow2"], 20, "image-not-found", "/nowhere/image.qcow2"),
        (["--backend", "floppy"], 15, "unknown-backend", "floppy"),
        (["--cache", "other"], 17, "unknown-cache", "other"),
        (["--ssh-key", "PRIVATE"], 16, "config-error", "no file with one public key"),
        (["--ssh-key", "/nowhere"], 16, "config-error", "cannot be read"),
        (["--user-data", "EMPTY"], 16, "config-error", "is empty"),
        (["--property", "bus"], 14, "invalid-name", "no property of an image"),
        (["--property", "hw_disk_bus=floppy"], 95, "invalid-input", "floppy"),
        (["--no-network", "--bridge", "br0"], 2, "usage", "--no-network"),
        (["--no-config-drive", "--ssh-key", "PRIVATE"], 2, "usage", "config drive"),
        (["--vcpus", "0"], 2, "usage", "--vcpus"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line_and_leaves_nothing(
    machine: Machine, daemon: Daemon, image: str, more: list[str], status: int, code: str, told: str
) -> None:
    files = {name: machine.root / name.lower() for name in ("LARGE", "PRIVATE", "EMPTY")}
    if "LARGE" in more:
        write_qcow2(files["LARGE"], size=2 * GIB, message="large")
    files["PRIVATE"].write_text("-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret\n")
    files["EMPTY"].touch()
    for number in (1, 2):
        (machine.base / f"abcdef{number:034x}").write_bytes(bytes(512))
    given = [files["LARGE"].as_uri() if one == "LARGE" else os.fspath(files.get(one, one)) for one in more]
    asked = ["vm", "create", "web", *([] if "--image" in given else ["--image", image]), "--memory", "32MiB", *given]
    ended = machine.call(*asked, "--json")
    assert (status, code) == (ended.status, ended.error["code"]), ended
    assert told in str(ended.error["message"])
    for_people = machine.call(*asked)
    assert (status, "") == (for_people.status, for_people.out)
    assert for_people.err.splitlines()[-1].startswith("underlay: ")
    assert "s3cret" not in ended.out + for_people.err
    assert ([], []) == ([*{*left(machine)} - {"snapshots"}], domains(daemon))


@pytest.mark.parametrize("name", ["../web", "web_1", "", "ä", "a/b", "-x"])
def test_a_name_that_no_host_can_have_is_refused(machine: Machine, image: str, name: str) -> None:
    ended = machine.call("vm", "create", "--image", image, "--json", "--", name)
    assert (14, "invalid-name") == (ended.status, ended.error["code"])


def test_a_name_that_is_taken_stays_with_who_has_it(machine: Machine, daemon: Daemon, image: str) -> None:
    made = create(machine, "web", image, "--no-start")
    with foreign(daemon, "theirs"):
        for name in ("web", "theirs"):
            ended = machine.call("vm", "create", name, "--image", image, "--json")
            assert (91, "instance-exists") == (ended.status, ended.error["code"])
    assert [made["uuid"]] == left(machine)


def test_of_two_that_make_one_machine_at_once_one_does(machine: Machine, image: str) -> None:
    machine.host().ensure(image)
    makers = [machine.start("vm", "create", "web", "--image", image, "--memory", "32MiB", "--no-start") for _ in range(3)]
    for maker in makers:
        maker.communicate(timeout=PATIENCE)
    statuses = sorted(maker.returncode for maker in makers)
    assert 0 == statuses[0]
    assert {91, 96} >= set(statuses[1:])
    assert [answered(machine, "vm", "show", "web")["vm"]["uuid"]] == left(machine)


COMMANDS = [["show"], ["start"], ["stop"], ["reboot"], ["snapshot"], ["delete", "--yes"], ["console"], ["console", "--output"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_machine_that_is_not_there_or_not_ours_is_left_alone(machine: Machine, daemon: Daemon, command: list[str]) -> None:
    first, *rest = command
    ended = machine.call("vm", first, "nothing", *rest)
    assert (90, "") == (ended.status, ended.out)
    assert "underlay: there is no virtual machine 'nothing' ('underlay vm list' shows those there are)\n" == ended.err
    with foreign(daemon, "theirs"):
        refused = machine.call("vm", first, "theirs", *rest)
        assert 90 == refused.status
        assert refused.err.startswith("underlay: 'underlay vm' did not make the domain 'theirs'")
        assert ([], ["theirs"]) == (machine.call("vm", "list", "--json").json["vms"], domains(daemon))


def test_a_uuid_is_the_machine_that_has_it_whatever_another_is_called(machine: Machine, daemon: Daemon, image: str) -> None:
    first, second = (create(machine, name, image, "--no-start") for name in ("first", "second"))
    connection = quiet_library().open(daemon.uri)
    connection.lookupByName("second").rename(first["uuid"])
    connection.close()

    assert first["uuid"] == answered(machine, "vm", "show", first["uuid"])["vm"]["uuid"]
    assert first["uuid"] == answered(machine, "vm-delete", "delete", "first", "--yes")["deleted"]["uuid"]
    assert [second["uuid"]] == left(machine)


def test_names_that_are_not_utf8_are_told_in_one_line(machine: Machine, daemon: Daemon, image: str) -> None:
    name = "web\udcff"  # as Python has an argument of other bytes
    for first, *rest in COMMANDS:
        assert 90 == machine.call("vm", first, name, *rest).status
    for option, status in (("--network", 96), ("--bridge", 96), ("--os-type", 14), ("--backend", 15), ("--cache", 17)):
        ended = machine.call("vm", "create", "web", "--image", image, option, name, "--json")
        assert status == ended.status, ended
    assert ([], []) == (left(machine), domains(daemon))


def test_metadata_that_somebody_has_changed_is_told(machine: Machine, daemon: Daemon) -> None:
    more = f"<metadata><x:vm xmlns:x='{NAMESPACE}'>{{}}</x:vm></metadata>"
    with foreign(daemon, "web", more):
        ended = machine.call("vm", "show", "web", "--json")
        assert (96, "operation-failed") == (ended.status, ended.error["code"])
        assert "the metadata of the domain web is no record" in str(ended.error["message"])
        config = machine.config.read_text()
        machine.config.write_text(config.replace("[instances]\n", f'[instances]\ninventory = "libvirt:{daemon.uri}"\n'))
        told = machine.call("prune", "--json").json
        assert ["invalid-inventory"] == [problem["code"] for problem in told["problems"]]
        machine.config.write_text(config)


def test_a_machine_whose_record_nobody_can_read_is_listed_with_the_others_and_goes(
    machine: Machine, daemon: Daemon, image: str
) -> None:
    made, other = create(machine, "web", image, "--swap", "1MiB"), create(machine, "other", image)
    connection = quiet_library().open(daemon.uri)
    domain = connection.lookupByName("web")
    domain.setMetadata(quiet_library().VIR_DOMAIN_METADATA_ELEMENT, "<vm>nothing</vm>", "x", NAMESPACE, 2)
    connection.close()

    listed = answered(machine, "vm-list", "list")
    assert ["other"] == [vm["name"] for vm in listed["vms"]]
    [problem] = listed["problems"]
    assert ("vm-unreadable", "web", made["uuid"], "running") == tuple(problem[key] for key in ("code", "name", "uuid", "state"))
    told = machine.call("vm", "list")
    assert 0 == told.status
    assert re.search(r"^web +running +[?]", told.out, re.MULTILINE)
    assert "'underlay vm delete web'" in told.out

    for arguments in (["show"], ["start"], ["stop"], ["reboot"], ["snapshot"]):
        assert 96 == machine.call("vm", *arguments, "web").status
    assert 2 == machine.call("vm", "delete", "web").status  # nobody is there who could be asked
    deleted = answered(machine, "vm-delete", "delete", "web", "--yes")["deleted"]
    assert {"name": "web", "uuid": made["uuid"]} == deleted
    assert (["other"], [other["uuid"]]) == (domains(daemon), left(machine))


def test_a_machine_is_not_started_without_its_bridge(machine: Machine, image: str) -> None:
    name = f"ulv{os.getpid()}"
    command("ip", "link", "add", "name", name, "type", "bridge")
    create(machine, "web", image, "--bridge", name, "--no-start")
    command("ip", "link", "delete", name)
    for arguments in (["start", "web"], ["reboot", "web", "--hard"]):
        ended = machine.call("vm", *arguments, "--json")
        assert (96, f"the bridge {name} is not there") == (ended.status, ended.error["message"])
    assert "shutdown" == answered(machine, "vm", "show", "web")["vm"]["state"]


def test_a_libvirt_that_is_gone_is_told(machine: Machine, image: str) -> None:
    config = machine.config.read_text()
    machine.config.write_text(re.sub('socket=[^"]*', "socket=/nowhere/sock", config))
    for arguments in (["list"], ["create", "web", "--image", image], ["start", "web"], ["console", "web"]):
        ended = machine.call("vm", *arguments, "--json")
        assert (96, "hypervisor-unavailable") == (ended.status, ended.error["code"])
        assert "/nowhere/sock cannot be reached" in str(ended.error["message"])
    assert [] == left(machine)
    machine.config.write_text(config)


def test_what_is_not_installed_is_named_with_its_extra(machine: Machine, image: str) -> None:
    for name, arguments in (("libvirt", ["list"]), ("pycdlib", ["create", "web", "--image", image])):
        (machine.root / f"{name}.py").write_text("raise ImportError")
        environment = os.environ | {"PYTHONPATH": os.fspath(machine.root)}
        ended = machine.run("vm", *arguments, "--json", env=environment)
        assert "extra-missing" == ended.error["code"]
        assert "pip install 'underlay[libvirt]'" == ended.error["hint"]
        (machine.root / f"{name}.py").unlink()
    assert [] == left(machine)


def test_an_interrupt_while_the_image_comes_leaves_nothing(machine: Machine, daemon: Daemon, tmp_path: Path) -> None:
    slow = tmp_path / "slow.qcow2"
    write_qcow2(slow, size=16 * MIB, message="slow", payload=4 * MIB)
    with serving({"/slow.qcow2": Served(slow, stall_after=1 << 16)}) as server:
        maker = machine.start("vm", "create", "web", "--image", server.url("/slow.qcow2"))
        server.wait_until_sent("/slow.qcow2", 1 << 16)
        assert 1 == len(left(machine))
        maker.send_signal(signal.SIGINT)
        out, err = maker.communicate(timeout=PATIENCE)
    assert (130, "") == (maker.returncode, out)
    assert "underlay: interrupted" == err.splitlines()[-1]
    assert ([], []) == (left(machine), domains(daemon))


def test_what_a_killed_command_left_goes_with_the_next(machine: Machine, image: str, tmp_path: Path) -> None:
    slow = tmp_path / "slow.qcow2"
    write_qcow2(slow, size=16 * MIB, message="slow", payload=4 * MIB)
    with serving({"/slow.qcow2": Served(slow, stall_after=1 << 16)}) as server:
        maker = machine.start("vm", "create", "web", "--image", server.url("/slow.qcow2"))
        server.wait_until_sent("/slow.qcow2", 1 << 16)
        maker.kill()
        maker.communicate(timeout=PATIENCE)
    assert 1 == len(left(machine))
    made = create(machine, "web", image, "--no-start")
    assert [made["uuid"]] == left(machine)


def test_a_removal_is_asked_for_first(machine: Machine, image: str) -> None:
    create(machine, "web", image, "--no-start")
    silent = machine.run("vm", "delete", "web", "--json")
    assert (2, "usage") == (silent.status, silent.error["code"])
    terminal = Terminal(machine.argv("vm", "delete", "web"))
    terminal.await_text("Remove web (shutdown) and all that is on its disks? [y/N]")
    terminal.type("n\n")
    assert 130 == terminal.end()
    assert "shutdown" == answered(machine, "vm", "show", "web")["vm"]["state"]
    agreed = Terminal(machine.argv("vm", "delete", "web"))
    agreed.await_text("[y/N]")
    agreed.type("y\n")
    agreed.await_text("deleted web")
    assert 0 == agreed.end()


# ------------------------------------------------------------------------------------------------------------------ completion


def test_names_are_completed(machine: Machine, image: str) -> None:
    for name in ("web-1", "web-2", "db"):
        create(machine, name, image, "--no-start")

    def completed(config: Path, word: str) -> Ended:
        words = f"underlay --config {config} vm stop {word}"
        asked = {"_UNDERLAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "5"}
        return run(command_line([]), env=os.environ | asked)

    assert ["plain,web-1", "plain,web-2"] == completed(machine.config, "w").out.splitlines()
    began = time.monotonic()
    nowhere = machine.root / "nowhere.toml"
    nowhere.write_text(re.sub('socket=[^"]*', "socket=/nowhere/sock", machine.config.read_text()))
    for config in (nowhere, machine.root / "none.toml"):
        ended = completed(config, "w")
        assert ("", "") == (ended.out.strip(), ended.err)
    assert time.monotonic() - began < PATIENCE
