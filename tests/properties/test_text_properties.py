"""What people and files write: refs, names, digests, sizes and records, read back as they were meant or refused."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, example, given, strategies as st

import strategies
from underlay.attributes import MAX_BYTES, decode_disk_record, decode_image_record, encode_record
from underlay.errors import InvalidDigest, InvalidName, InvalidRef, InvalidSize, StorageFailed
from underlay.model import Digest, DiskRecord, ImageRecord
from underlay.naming import (
    STORED_FORMATS,
    CacheKind,
    CachePaths,
    candidate_names,
    is_image_name,
    kind_of_name,
    master_name,
    named_format,
    original_name,
    path_key,
    plain_name,
    ref_key,
)
from underlay.refs import MAX_LENGTH, is_ref, parse_ref
from underlay.units import format_duration, format_size, parse_duration, parse_size
from underlay.values import replace

# ------------------------------------------------------------------------------------------------------------------------- refs


@given(st.text() | st.text().map(lambda rest: "https://" + rest) | st.text().map(lambda rest: "file:///" + rest))
@example("https://[")
@example("https://a:b")
@example("https://\udcff/")
@example("file:///%FF")
def test_any_text_is_a_ref_or_an_invalid_one(text: str) -> None:
    try:
        ref = parse_ref(text)
    except InvalidRef:
        return

    assert ref.canonical == parse_ref(ref.canonical).canonical
    assert ref.scheme == parse_ref(ref.canonical).scheme
    assert ref.canonical.isprintable() or not text.isprintable()
    assert len(ref.canonical.encode()) <= MAX_LENGTH
    assert is_ref(ref.canonical)


@given(strategies.http_urls())
def test_a_url_has_one_spelling_without_credentials_and_fragment(url: str) -> None:
    ref = parse_ref(url)

    assert ref.canonical == parse_ref(ref.canonical).canonical
    assert "#" not in ref.canonical
    assert "#" not in ref.location
    assert re.match(r"https?://[^/@]+/", ref.canonical)
    assert not re.match(r"http://[^/]*:80/|https://[^/]*:443/", ref.canonical)


@given(strategies.http_urls(), st.sampled_from(strategies.SIGNATURES), st.text("abc123%", min_size=1, max_size=6))
def test_a_signature_never_changes_which_image_is_meant_and_is_never_shown(url: str, name: str, value: str) -> None:
    assume("#" not in url)
    signed = f"{url}{'&' if '?' in url else '?'}{name}=SECRET{value}"

    ref = parse_ref(signed)

    assert signed.partition("?")[2] in ref.location
    assert "SECRET" not in ref.canonical + repr(ref)
    assert parse_ref(f"{signed}&X-Amz-Date=1").canonical == ref.canonical


@given(strategies.path_bytes)
def test_a_path_of_any_bytes_can_be_a_file_ref(path: bytes) -> None:
    quoted = "".join(f"%{byte:02X}" if byte != ord("/") else "/" for byte in path)
    ref = parse_ref(f"file://{quoted}")

    assert path == bytes(Path(ref.location))
    assert ref.canonical == parse_ref(ref.canonical).canonical
    assert ref.canonical.isascii()


@given(st.uuids())
def test_a_uuid_is_a_glance_image_in_any_case_and_form(uuid: object) -> None:
    text = str(uuid)

    assert {f"glance:{text}"} == {
        parse_ref(form).canonical for form in (text, text.upper(), f"glance:{text}", f"GLANCE:{text.upper()}")
    }


# ------------------------------------------------------------------------------------------------------------------------ names


@given(strategies.version_ids, st.sampled_from(STORED_FORMATS), strategies.http_urls(), st.sampled_from(list(CacheKind)))
def test_a_name_that_we_make_is_plain_ours_and_says_its_format(
    version_id: str, stored_format: str, url: str, kind: CacheKind
) -> None:
    assume(not any("\ud800" <= character <= "\udfff" for character in version_id))
    ref = parse_ref(url)
    if kind is CacheKind.MASTERS:
        name = master_name(version_id, ref=ref, raw=stored_format == "raw")
    else:
        name = original_name(version_id, ref=ref, stored_format=stored_format)

    assert name == plain_name(name, what="an image")
    assert is_image_name(name, kind=kind)
    assert ("original" if kind is CacheKind.BASE else "master") == kind_of_name(name, kind=kind)
    assert name in candidate_names(version_id, ref=ref, kind=kind, raw_only=False)
    may_be_raw = stored_format == "raw" or kind is CacheKind.MASTERS  # whose plain name may hold what came raw
    assert may_be_raw == (name in candidate_names(version_id, ref=ref, kind=kind, raw_only=True))
    if kind is CacheKind.BASE:
        assert stored_format == named_format(name, kind=kind)


@given(st.text())
@example("..")
@example(".")
@example("a/b")
@example("")
@example("a\n")
@example("\u0661")
def test_a_name_from_outside_never_leaves_its_directory(name: str) -> None:
    try:
        plain_name(name, what="an image")
    except InvalidName:
        return

    paths = CachePaths(Path("/cache"))
    assert Path("/cache") == paths.image(name).parent
    assert paths.locks == paths.image_lock(name).parent
    assert paths.used == paths.used_marker(name).parent
    assert (1 <= len(name) <= 128, True) == (True, name.isascii())
    assert not name.startswith((".", "-"))


@given(st.text(), st.sampled_from(list(CacheKind)))
def test_any_name_has_a_kind_or_is_a_strangers(name: str, kind: CacheKind) -> None:
    kinds = {"original", "resized", "swap", "ephemeral", "leftover"} if kind is CacheKind.BASE else {"master"}

    assert kind_of_name(name, kind=kind) in kinds | {None}


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_keys_are_hexadecimal_and_differ_where_refs_and_paths_do(one: str, other: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", ref_key(one))
    assert (one == other) == (ref_key(one) == ref_key(other))
    assert "\0" in one or re.fullmatch(r"[0-9a-f]{64}", path_key(Path(one)))


@given(strategies.version_ids.filter(lambda text: text.isprintable()), st.integers(0, 10**6))
def test_the_locks_of_an_ingest_sort_before_images_and_those_of_disks_after(version_id: str, number: int) -> None:
    paths = CachePaths(Path("/cache"))
    ref = parse_ref(f"https://host/{number}")
    images = [paths.image_lock(name) for name in candidate_names(version_id, ref=ref, kind=CacheKind.BASE, raw_only=False)]
    images += [paths.image_lock(name) for name in candidate_names(version_id, ref=ref, kind=CacheKind.MASTERS, raw_only=False)]
    images += [paths.image_lock(name) for name in ("swap_1024", "ephemeral_10_0123456", "f" * 40)]
    before = [paths.space_lock, paths.ingest_lock(ref_key(ref.canonical))]
    after = [paths.disk_lock(Path(f"/disk/{number}")), paths.disk_info_lock(Path(f"/disk/{number}"))]

    assert max(before) < min(images) <= max(images) < min(after)


# ---------------------------------------------------------------------------------------------------------------------- digests


@given(strategies.digests(), st.booleans())
def test_a_digest_is_read_back_as_it_is_written(digest: Digest, upper: bool) -> None:  # noqa: FBT001 - drawn, not passed
    text = str(digest)

    assert digest == Digest.parse(text.upper() if upper else text)
    assert digest == Digest.parse(f"  {text}\n")


@given(
    st.text()
    | strategies.digests().map(lambda digest: str(digest)[:-1])
    | strategies.digests().map(lambda digest: f"{digest}0")
)
def test_any_other_text_is_an_invalid_digest(text: str) -> None:
    with suppress(InvalidDigest):
        assert text.strip().lower() == str(Digest.parse(text))


# ------------------------------------------------------------------------------------------------------------------------ sizes


@given(st.integers(0, 2**63 - 1))
def test_a_size_in_bytes_is_exact(size: int) -> None:
    assert size == parse_size(f"{size}B")


@given(st.integers(0, 2**13 - 1), st.sampled_from(["KiB", "MiB", "GiB", "TiB", "PiB"]))
def test_a_size_in_its_unit_is_exact(number: int, unit: str) -> None:
    exponent = 10 * (["KiB", "MiB", "GiB", "TiB", "PiB"].index(unit) + 1)

    assert (number << exponent) == parse_size(f" {number} {unit} ")


@given(st.text() | st.from_regex(r"[0-9]{1,5000}(\.[0-9]{0,400})?[ ]?(GiB|B|d|min)?", fullmatch=True))
@example("9" * 4301 + "B")
@example("1.5")
@example("9" * 400 + ".5 GiB")
def test_any_text_is_a_size_and_a_duration_or_an_invalid_one(text: str) -> None:
    with suppress(InvalidSize):
        assert 0 <= parse_size(text) < 2**63
    with suppress(InvalidSize):
        assert 0 <= parse_duration(text)


@given(st.integers(0, 999 << 50))
def test_a_size_for_people_has_three_digits_and_is_near(size: int) -> None:
    shown = format_size(size)

    number, unit = shown.split()
    assert len(number.replace(".", "")) <= 3
    assert parse_size(f"{number}{unit}") == pytest.approx(size, rel=0.06, abs=0)


@given(st.floats(0, 10**9, allow_nan=False))
def test_a_duration_for_people_is_near(seconds: float) -> None:
    number, unit = format_duration(seconds).split()

    assert parse_duration(f"{number}{unit}") <= seconds + 1
    assert parse_duration(f"{number}{unit}") >= seconds / 2 - 1


# ---------------------------------------------------------------------------------------------------------------------- records


@given(strategies.image_records())
def test_an_images_record_is_read_back_as_it_was_written(record: ImageRecord) -> None:
    assert record == decode_image_record(encode_record(record))


@given(strategies.disk_records())
def test_a_disks_record_is_read_back_as_it_was_written(record: DiskRecord) -> None:
    assert record == decode_disk_record(encode_record(record))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["layout", "digests", "ref", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.binary() | _json.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 5000)
@example(b'{"layout": 1, "x": ' + b"[" * 5000 + b"]" * 5000 + b"}")
@example(b"\xff\xfe")
def test_any_attribute_is_a_record_or_none(value: bytes) -> None:
    decode_image_record(value)
    decode_disk_record(value)


@given(strategies.image_records(), st.text(min_size=900, max_size=1024))
def test_a_record_fits_an_attribute_or_is_refused(record: ImageRecord, long: str) -> None:
    with suppress(StorageFailed):
        assert len(encode_record(replace(record, ref=long, version_id=long))) <= MAX_BYTES
