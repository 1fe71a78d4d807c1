"""What ``underlay vm`` decides, keeps and reads, without a libvirt. tests/components/libvirtd has the rest."""

import base64
import json
import os
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import pytest
from hypothesis import given, strategies as st

from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt.diskplan import disks_of
from underlay.errors import ConfigError, InvalidName, InvalidSize
from underlay.inventory import libvirt as inventory
from underlay.vm import consoles, instances, wanted
from underlay.vm.neighbours import seen_addresses
from underlay.vm.plaintext import PlainText
from underlay.vm.record import NAMESPACE, TAG, VmEphemeral, VmInterface, VmRecord, is_ours, kept_as, record_of

UUID = "6f1b3c0e-3f8e-4a41-9b1e-1c2d3e4f5a6b"
INTERFACE = VmInterface(id=UUID, address="52:54:00:00:00:01", bridge="br0", network="lab")
RECORD = VmRecord(
    created_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
    image="https://example.org/ä&<image>.qcow2",
    memory_mib=1024,
    vcpus=2,
    root_gib=20,
    swap_mib=512,
    ephemerals=(VmEphemeral(size_gib=1), VmEphemeral(size_gib=2)),
    interfaces=(INTERFACE,),
    properties={"hw_disk_bus": "scsi"},
)


def domain_with(text: str) -> Element:
    domain = Element("domain")
    SubElement(SubElement(domain, "metadata"), TAG).text = text
    return fromstring(tostring(domain))


# ---------------------------------------------------------------------------------------------------------------------- record


def test_a_record_is_read_from_the_domain_as_it_was_written() -> None:
    [(tag, text)] = kept_as(RECORD).items()
    assert (TAG, True) == (tag, text.isascii())
    assert RECORD == record_of(domain_with(text), "web")


@given(image=st.none() | st.text(st.characters(codec="utf-8")), name=st.text(st.characters(codec="utf-8")))
def test_no_text_of_a_record_is_markup(image: str | None, name: str) -> None:
    record = VmRecord(created_at=datetime(2026, 1, 1, tzinfo=UTC), image=image, memory_mib=1, vcpus=1, properties={name: name})
    assert record == record_of(domain_with(kept_as(record)[TAG]), "web")


def test_a_domain_without_a_record_is_somebody_elses() -> None:
    assert not is_ours(fromstring("<domain><metadata><vm/></metadata></domain>"))
    assert is_ours(domain_with("whatever is in it"))


def edited(old: str, new: str) -> str:
    """The text of a record in which somebody has changed something."""
    text = kept_as(RECORD)[TAG]
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"memory_mib": "much"}',
        edited("1024", '"1024"'),
        edited("1024", "-1024"),
        edited('"vcpus": 2', '"vcpus": 0'),
        edited("12:00:00Z", "12:00:00"),  # a moment of no time zone
        edited('"swap_mib": 512', '"swap_mib": -1'),
        edited('"size_gib": 1', '"size_gib": 0'),
        edited("52:54:00:00:00:01", "52:54:00:00:00"),
        edited(UUID, "../../tmp"),
        edited('"bridge": "br0"', '"bridge": "../br0"'),
    ],
)
def test_a_record_that_makes_no_sense_is_refused_with_what_shows_it(text: str) -> None:
    with pytest.raises(OperationFailed, match="the metadata of the domain web is no record") as refused:
        record_of(domain_with(text), "web")
    assert f"virsh metadata web {NAMESPACE}" in str(refused.value.hint)


def test_the_inventory_reads_the_same_element() -> None:
    assert TAG == inventory._OURS


# ------------------------------------------------------------------------------------------------------- what the driver reads


def test_an_instance_has_what_its_record_says() -> None:
    data = instances.DriveContent(user_data=b"\xff#cloud-config", key="ssh-ed25519 AAAA")
    instance = instances.instance_of(RECORD, uuid=UUID, name="web", host="node1", image="https://u:s3cret@h/x", data=data)
    flavor = instance.flavor
    assert (1024, 2, 20, 3, 512) == (flavor.memory_mb, flavor.vcpus, flavor.root_gb, flavor.ephemeral_gb, flavor.swap)
    assert ("web", "web", RECORD.image) == (instance.display_name, instance.hostname, instance.image_ref)
    assert b"\xff#cloud-config" == base64.b64decode(instance.user_data or "")
    assert "s3cret" not in repr(instance)
    assert "" == instances.instance_of(RECORD, uuid=UUID, name="web", host="node1").config_drive


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata", "ide"])
@pytest.mark.parametrize("ephemerals", [0, 1, 2])
def test_no_two_disks_of_a_machine_have_one_name(bus: str, ephemerals: int) -> None:
    record = VmRecord(
        created_at=RECORD.created_at,
        image=None,
        memory_mib=1,
        vcpus=1,
        swap_mib=64,
        ephemerals=(VmEphemeral(size_gib=1),) * ephemerals,
        properties={"hw_disk_bus": bus},
    )
    instance = instances.instance_of(record, uuid=UUID, name="web", host="node1")
    disks = disks_of(instance, instance.image_meta, instances.block_devices_of(record))
    assert ephemerals + 2 == len({disk.device for disk in disks})
    assert ("disk", "disk.swap") == (disks[0].name, disks[-1].name)


def test_a_guest_is_to_ask_for_its_address() -> None:
    [vif] = instances.interfaces_of(RECORD)
    assert (UUID, "52:54:00:00:00:01", "bridge", "br0") == (vif["id"], vif["address"], vif["type"], vif["network"]["bridge"])
    assert [4] == [one["version"] for one in vif["network"]["subnets"] if one["meta"]["dhcp_server"]]


# --------------------------------------------------------------------------------------------------------------- what is wanted


@pytest.mark.parametrize("text", ["0GiB", "1", "GiB", "1.5GiB", "10GB", "-1GiB", "99999999999999999999GiB"])
def test_what_is_no_whole_number_of_gibibytes_is_refused(text: str) -> None:
    with pytest.raises(InvalidSize):
        wanted.gibibytes(text, what="the root disk")
    assert (2, 2048) == (wanted.gibibytes("2048MiB", what="it"), wanted.mebibytes("2GiB", what="it"))


def test_a_name_that_is_a_uuid_would_be_taken_for_that_of_another_machine() -> None:
    for name in (UUID, UUID.upper(), UUID.replace("-", "")):
        with pytest.raises(InvalidName, match="it is a UUID"):
            wanted.checked_name(name)
    assert "web-1.example" == wanted.checked_name("web-1.example")


def test_the_system_of_a_guest_is_a_plain_word() -> None:
    for name in ("\udcff", "", "a b", "<linux>"):
        with pytest.raises(InvalidName, match="no name for a guest's system"):
            wanted.system(name)
    assert "windows" == wanted.system("windows")


def test_properties_are_pairs() -> None:
    assert {"hw_disk_bus": "sata", "os_command_line": "a=b"} == wanted.properties_of(
        ["hw_disk_bus=sata", "os_command_line=a=b"]
    )
    for pair in ("hw_disk_bus", "=x", "a b=c", "a=b\nc"):
        with pytest.raises(InvalidName):
            wanted.properties_of([pair])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# nothing\n",
        b"ssh-rsa A\nssh-rsa B\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret\n",
        b"s3cret",
        b"ssh-\xff\x1b[2J",
    ],
)
def test_what_is_no_public_key_is_refused_and_not_repeated(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        wanted.public_key(file)
    assert "s3cret" not in f"{refused.value}{refused.value.hint}"


def test_each_new_interface_has_an_address_of_its_own() -> None:
    made = [wanted.new_interface("br0") for _ in range(50)]
    assert 50 == len({one.address for one in made}) == len({one.id for one in made})
    assert all(one.address.startswith("52:54:00:") and 17 == len(one.address) for one in made)


# --------------------------------------------------------------------------------------------------------------------- console


def all_of(written: consoles.Written) -> bytes:
    return b"".join(iter(written.rest, b""))


def test_what_a_guest_writes_is_read_as_it_comes_and_over_each_new_file(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    written = consoles.Written(log)
    assert b"" == written.rest()
    log.write_bytes(b"first")
    assert b"first" == all_of(written)
    with log.open("ab") as file:
        file.write(b" more")
        file.flush()
        assert b" more" == all_of(written)
        file.write(b" last")
    os.rename(log, tmp_path / "console.log.0")  # as virtlogd does it
    log.write_bytes(b"next")
    assert b" last" == written.rest()
    assert b"next" == all_of(written)
    log.write_bytes(b"new")  # as QEMU does it when the guest is started anew
    assert b"new" == all_of(written)
    log.unlink()
    assert b"" == written.rest()
    written.close()


@pytest.mark.parametrize(("last", "seen"), [(3, b"xyz"), (100, b"all xyz")])
def test_reading_begins_near_the_end(last: int, seen: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"all xyz")
    with consoles.read_from(tmp_path / "log", last=last) as written:
        assert seen == all_of(written)


@pytest.mark.parametrize(
    "obeyed",
    [
        b"\x1bc",  # as SeaBIOS begins
        b"\x1b[?7l",
        b"\x1b[6n",  # answered by who reads it
        b"\x1b[1;31m",
        b"\x1b]0;title\x07",
        b"\x1b]52;c;cm0gLXJmIC8K\x1b\\",  # into the clipboard
        b"\x1bP$qm\x1b\\",
        b"\x1b(B",
        b"\x07",
        b"\xc2\x9b6n",  # the same in one character
        b"\xc2\x9d0;title\xc2\x9c",
    ],
)
def test_of_what_a_guest_has_written_a_terminal_is_shown_the_text(obeyed: bytes) -> None:
    text = "login: \u00e4\r\n\tgo".encode()
    assert b"a" + text == PlainText().of(b"a" + obeyed + text)


@given(data=st.binary(max_size=64), cut=st.integers(0, 64))
def test_no_bytes_of_a_guest_reach_a_terminal_as_a_control(data: bytes, cut: int) -> None:
    plain = PlainText()
    shown = (plain.of(data[:cut]) + plain.of(data[cut:])).decode()
    assert [] == [one for one in shown if "Cc" == unicodedata.category(one) and one not in "\r\n\t"]


def test_a_character_between_two_pieces_is_whole() -> None:
    plain = PlainText()
    assert ["", "ä"] == [plain.of(piece).decode() for piece in (b"\xc3", b"\xa4")]


def test_a_line_on_which_something_always_comes_lets_who_types_go_on() -> None:
    typed: list[bytes] = []

    def write(some: bytes) -> int:
        typed.append(some)
        return len(some)

    line = consoles.Line(lambda: b"and so on", write)
    line.type(b"quit")
    line.turn()
    assert [b"quit"] == typed


def test_the_kernels_neighbours_are_told_by_mac(tmp_path: Path) -> None:
    table = tmp_path / "arp"
    table.write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "192.0.2.7        0x1         0x2         52:54:00:d5:5d:95     *        br0\n"
        "192.0.2.8        0x1         0x6         52:54:00:d5:5d:95     *        br0\n"
        "192.0.2.9        0x1         0x0         00:00:00:00:00:00     *        br0\n"
    )
    assert {"52:54:00:d5:5d:95": ("192.0.2.7", "192.0.2.8")} == seen_addresses(table)
    assert isinstance(seen_addresses(), dict)


def test_the_record_is_plain_json() -> None:
    told = json.loads(kept_as(RECORD)[TAG])
    assert {"created_at", "image", "memory_mib", "vcpus", "os_type", "root_gib", "swap_mib", "ephemerals", "interfaces"} < set(
        told
    )
