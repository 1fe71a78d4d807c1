"""Block devices as a driver gets them: of which rows they are made, and how they are read."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from underlay import compute
from underlay.compute import convert_all_volumes, convert_ephemerals, convert_swap, get_block_device_info, get_swap

BLANK = {"source_type": "blank", "destination_type": "local"}
SWAP = {**BLANK, "guest_format": "swap", "volume_size": 512, "device_name": "/dev/vdb", "disk_bus": "virtio"}
EPHEMERAL = {**BLANK, "guest_format": "ext4", "volume_size": 1, "device_name": "/dev/vdc", "device_type": "disk"}
VOLUME = {
    "source_type": "volume",
    "destination_type": "volume",
    "device_name": "/dev/vda",
    "boot_index": 0,
    "connection_info": json.dumps({"serial": "v1"}),
    "delete_on_termination": True,
    "attachment_id": "a1",
}
IMAGE = {"source_type": "image", "destination_type": "local", "image_id": "i1", "volume_size": 2, "device_name": "/dev/vda"}
INSTANCE = SimpleNamespace(root_device_name="/dev/vda")


class Row:
    """A row whose fields are versioned: to ask for one that is not set is an error."""

    fields = ("source_type", "destination_type", "guest_format", "volume_size", "device_name", "disk_bus", "no_device")

    def __init__(self, **values: Any) -> None:
        self.values = values

    def obj_attr_is_set(self, name: str) -> bool:
        return name in self.values

    def __getattr__(self, name: str) -> Any:
        if name in self.fields and name not in self.values:
            raise RuntimeError(f"{name} would have to be loaded")
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None


def test_a_swap_disk_has_its_size_in_mib() -> None:
    expected = [{"device_name": "/dev/vdb", "swap_size": 512, "disk_bus": "virtio"}]
    assert expected == convert_swap([EPHEMERAL, SWAP, VOLUME])
    assert 0 == convert_swap([{**SWAP, "volume_size": None}])[0]["swap_size"]


def test_an_ephemeral_is_every_other_blank_local_disk_in_the_rows_order() -> None:
    bare = {**BLANK, "device_name": "/dev/vdd"}
    found = convert_ephemerals([bare, SWAP, EPHEMERAL])
    assert [("/dev/vdd", 0, None), ("/dev/vdc", 1, "ext4")] == [
        (one["device_name"], one["size"], one["guest_format"]) for one in found
    ]
    assert {"device_name", "size", "disk_bus", "device_type", "guest_format"} == found[0].keys()


def test_rows_without_a_device_are_no_devices() -> None:
    rows = [{**one, "no_device": True} for one in (SWAP, EPHEMERAL, VOLUME, IMAGE)]
    assert [] == [*convert_swap(rows), *convert_ephemerals(rows), *convert_all_volumes(*rows)]


def test_volumes_come_by_their_source() -> None:
    sources = ["blank", "image", "snapshot", "volume", "volume"]
    rows = [{**VOLUME, "source_type": source, "device_name": f"/dev/vd{n}"} for n, source in enumerate(sources)]
    assert ["/dev/vd3", "/dev/vd4", "/dev/vd2", "/dev/vd1", "/dev/vd0"] == [
        one["mount_device"] for one in convert_all_volumes(*rows)
    ]
    singly = [compute.convert_volumes, compute.convert_snapshots, compute.convert_images, compute.convert_blanks]
    assert [2, 1, 1, 1] == [len(convert(rows)) for convert in singly]


def test_a_volume_has_its_connection_decoded() -> None:
    expected = {
        "connection_info": {"serial": "v1"},
        "mount_device": "/dev/vda",
        "delete_on_termination": True,
        "guest_format": None,
        "device_type": None,
        "disk_bus": None,
        "boot_index": 0,
        "attachment_id": "a1",
        "volume_type": None,
    }
    assert [expected] == convert_all_volumes(VOLUME)
    assert {} == convert_all_volumes({**VOLUME, "connection_info": None})[0]["connection_info"]
    assert {"a": 1} == convert_all_volumes({**VOLUME, "connection_info": {"a": 1}})[0]["connection_info"]


def test_a_connection_that_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        convert_all_volumes({**VOLUME, "connection_info": "no json"})


def test_a_field_that_is_not_set_is_not_loaded() -> None:
    row = Row(**BLANK, guest_format="swap", device_name="/dev/vdb")
    assert [{"device_name": "/dev/vdb", "swap_size": 0, "disk_bus": None}] == convert_swap([row])


def test_what_a_row_says_of_encryption_its_device_says() -> None:
    told = {"encrypted": True, "encryption_secret_uuid": "s", "encryption_format": "luks", "encryption_options": None}
    for row, convert in ((SWAP, convert_swap), (EPHEMERAL, convert_ephemerals), (IMAGE, compute.convert_local_images)):
        assert told.items() <= convert([{**row, **told}])[0].items()
        assert not told.keys() & convert([row])[0].keys()


def test_the_last_swap_disk_is_taken_out_of_the_list() -> None:
    first, last = convert_swap([SWAP, {**SWAP, "device_name": "/dev/vdz"}])
    disks = [first, last]
    assert last == get_swap(disks)
    assert [first] == disks
    assert get_swap([]) is None
    mixed = [first, *convert_ephemerals([EPHEMERAL])]
    assert get_swap(mixed) is None
    assert 2 == len(mixed)


def test_the_block_devices_of_an_instance() -> None:
    info = get_block_device_info(INSTANCE, iter([SWAP, EPHEMERAL, VOLUME, IMAGE]))
    assert {"root_device_name", "swap", "ephemerals", "block_device_mapping", "image"} == info.keys()
    assert ("/dev/vda", 512) == (info["root_device_name"], info["swap"]["swap_size"])
    assert [1, 1, 1] == [len(info[key]) for key in ("ephemerals", "block_device_mapping", "image")]
    assert ("i1", 0, 2) == tuple(info["image"][0][key] for key in ("image_id", "boot_index", "size"))
    empty = get_block_device_info(INSTANCE, [])
    assert {**empty, "root_device_name": None} == {
        "root_device_name": None,
        "swap": None,
        "ephemerals": [],
        "block_device_mapping": [],
        "image": [],
    }


@pytest.mark.parametrize("info", [None, {}, {"swap": None, "ephemerals": None, "block_device_mapping": None, "image": None}])
def test_of_nothing_nothing_is_read(info: Any) -> None:
    assert compute.block_device_info_get_root_device(info) is None
    assert {"device_name": None, "swap_size": 0} == compute.block_device_info_get_swap(info)
    readers = [
        compute.block_device_info_get_ephemerals,
        compute.block_device_info_get_mapping,
        compute.block_device_info_get_image,
        compute.block_device_info_get_encrypted_disks,
    ]
    assert [[], [], [], []] == [read(info) for read in readers]


def test_what_is_there_is_read() -> None:
    info = get_block_device_info(INSTANCE, [SWAP, EPHEMERAL, VOLUME])
    assert "/dev/vda" == compute.block_device_info_get_root_device(info)
    assert 512 == compute.block_device_info_get_swap(info)["swap_size"]
    assert info["ephemerals"] is compute.block_device_info_get_ephemerals(info)
    assert info["block_device_mapping"] is compute.block_device_info_get_mapping(info)


def test_encrypted_disks_come_from_images_first_and_swap_last() -> None:
    rows = [{**row, "encrypted": True} for row in (SWAP, EPHEMERAL, IMAGE)]
    info = get_block_device_info(INSTANCE, [*rows, EPHEMERAL])
    named = [one["device_name"] for one in compute.block_device_info_get_encrypted_disks(info)]
    assert ["/dev/vda", "/dev/vdc", "/dev/vdb"] == named


@pytest.mark.parametrize(
    ("swap", "usable"),
    [
        (None, False),
        ({}, False),
        ({"device_name": None, "swap_size": 512}, False),
        ({"device_name": "", "swap_size": 512}, False),
        ({"device_name": "/dev/vdb", "swap_size": 0}, False),
        ({"device_name": "/dev/vdb", "swap_size": 1}, True),
    ],
)
def test_swap_is_usable_when_it_has_a_name_and_a_size(swap: Any, usable: bool) -> None:  # noqa: FBT001
    assert usable is compute.swap_is_usable(swap)


def test_the_older_shapes_number_ephemerals_anew() -> None:
    info = get_block_device_info(INSTANCE, [SWAP, EPHEMERAL, {**EPHEMERAL, "device_name": "/dev/vdx"}, VOLUME])
    found = compute.legacy_block_devices([info["swap"], *info["block_device_mapping"], *info["ephemerals"]])
    assert [
        {"device_name": "/dev/vdb", "swap_size": 512},
        {"connection_info": {"serial": "v1"}, "mount_device": "/dev/vda", "delete_on_termination": True},
        {"device_name": "/dev/vdc", "size": 1, "num": 0, "virtual_name": "ephemeral0"},
        {"device_name": "/dev/vdx", "size": 1, "num": 1, "virtual_name": "ephemeral1"},
    ] == found
