"""Records in an attribute: their codec, and that what cannot be read makes a file unrecorded and nothing worse."""

import json
from datetime import UTC, datetime

import pytest

from underlay.attributes import MAX_BYTES, decode_disk_record, decode_image_record, encode_record
from underlay.errors import StorageFailed
from underlay.model import DIGEST_LENGTHS, LAYOUT, DiskRecord, ImageRecord
from underlay.refs import MAX_LENGTH, parse_ref
from underlay.values import replace

IMAGE = ImageRecord(
    layout=LAYOUT,
    version_id="https://host/x#sha256:ab",
    ref="https://host/x",
    format="qcow2",
    size=10,
    virtual_size=20,
    digests=(f"sha256:{'a' * 64}", f"md5:{'b' * 32}"),
    stored=f"sha256:{'c' * 64}",
    as_served=True,
    fetched_at=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
    underlay="0.1",
)
DISK = DiskRecord(
    layout=LAYOUT, instance="i", name="disk", backend="qcow2", format="qcow2", base="abc", cache="/cache", version_id=None
)


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(encode_record(IMAGE)) | fields).encode()


def test_a_record_is_read_back() -> None:
    assert IMAGE == decode_image_record(encode_record(IMAGE))
    assert DISK == decode_disk_record(encode_record(DISK))


def test_a_record_is_one_json_object_with_the_fields_names() -> None:
    value = json.loads(encode_record(IMAGE))

    assert {"layout", "version_id", "ref", "format", "size", "virtual_size", "digests", "stored", "as_served"} <= value.keys()
    assert (LAYOUT, "2024-05-06T07:08:09Z") == (value["layout"], value["fetched_at"])


def test_no_attribute_is_no_record() -> None:
    assert decode_image_record(None) is None
    assert decode_disk_record(None) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"1" * 5000,
        b"[" * 3000,
        b'{"x": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        changed(layout=LAYOUT + 1),
        changed(layout="1"),
        changed(size="10"),
        changed(size=None),
        changed(size=1.5),
        changed(fetched_at="yesterday"),
        changed(digests=["sha256:short"]),
        changed(digests=["x"]),
        changed(digests=[1]),
        encode_record(DISK),
    ],
    ids=range(19),
)
def test_what_cannot_be_read_is_no_record_and_no_error(value: bytes) -> None:
    assert decode_image_record(value) is None


def test_an_images_record_is_no_disks_record() -> None:
    assert decode_disk_record(encode_record(IMAGE)) is None
    assert decode_disk_record(b"[" * 3000) is None


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert IMAGE == decode_image_record(changed(later="x"))


def test_a_record_that_ext4_could_not_keep_is_refused() -> None:
    room = MAX_BYTES - len(encode_record(replace(IMAGE, ref="")))

    assert MAX_BYTES == len(encode_record(replace(IMAGE, ref="x" * room)))
    with pytest.raises(StorageFailed, match=f"the record of {MAX_BYTES + 1} bytes does not fit an attribute"):
        encode_record(replace(IMAGE, ref="x" * (room + 1)))


def test_the_longest_ref_fits_twice_with_every_digest() -> None:
    ref = parse_ref("https://host/" + '"' * ((MAX_LENGTH - len("https://host/")) // 2)).canonical
    digests = tuple(f"{algorithm}:{'a' * length}" for algorithm, length in DIGEST_LENGTHS.items())

    assert (
        len(encode_record(replace(IMAGE, ref=ref, version_id=f"{ref}#sha256:{'a' * 64}", digests=digests, mtime_ns=2**62)))
        <= MAX_BYTES
    )
