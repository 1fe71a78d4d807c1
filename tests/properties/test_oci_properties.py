"""What registries send, drawn at random: it is read, or refused by an error of ours, and it always ends."""

import io
import string
import tarfile
from contextlib import suppress
from urllib.parse import quote

from hypothesis import given, strategies as st

from underlay.errors import InvalidRef, SourceRefused
from underlay.refs import parse_ref
from underlay.sources.oci.challenge import parse_challenges
from underlay.sources.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from underlay.sources.oci.place import Place
from underlay.sources.oci.tar import BLOCK, TarReader

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=300)
FORMS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def archive(entries: list[tuple[str, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as written:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            written.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def read(content: bytes) -> list[tuple[str, bytes]]:
    reader, found = TarReader("an archive", io.BytesIO(content)), []
    while (entry := reader.next()) is not None:
        kept, buffer = bytearray(), memoryview(bytearray(777))
        while length := reader.readinto(buffer):
            kept += buffer[:length]
        found.append((entry.name, bytes(kept)))
    return found


@given(st.lists(st.tuples(NAMES, st.binary(max_size=2000)), max_size=5), FORMS)
def test_every_archive_of_tarfile_is_read_as_tarfile_reads_it(entries: list[tuple[str, bytes]], form: int) -> None:
    content = archive(entries, form)
    with tarfile.open(fileobj=io.BytesIO(content)) as written:
        names = [member.name for member in written]

    found = read(content)

    assert list(zip(names, [kept for _, kept in entries], strict=True)) == found


@given(st.binary(max_size=4 * BLOCK))
def test_anything_is_an_archive_or_refused(content: bytes) -> None:
    with suppress(SourceRefused):
        read(content)


@given(st.data(), FORMS, NAMES)
def test_a_damaged_archive_is_read_or_refused(data: st.DataObject, form: int, name: str) -> None:
    content = bytearray(archive([(name, b"x" * 700), ("b", b"")], form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    block = data.draw(st.integers(0, len(content) // BLOCK - 1)) * BLOCK
    _mend_checksum(content, block)
    with suppress(SourceRefused):
        read(bytes(content))


def _mend_checksum(content: bytearray, block: int) -> None:
    """Make the damage pass as a header."""
    content[block + 148 : block + 156] = b" " * 8
    content[block + 148 : block + 156] = b"%06o\0 " % sum(content[block : block + BLOCK])


@given(
    st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)), st.sampled_from([OCI_MANIFEST, OCI_INDEX, ""])
)
def test_anything_is_a_manifest_or_refused(content: bytes, kind: str) -> None:
    with suppress(SourceRefused):
        parse_manifest("an image", content, media_type=kind)


@given(st.text(st.sampled_from(string.ascii_letters + ' ="\\,;/\t'), max_size=200))
def test_any_field_is_read(text: str) -> None:
    for challenge in parse_challenges(text):
        assert challenge.scheme == challenge.scheme.lower() != ""


WORD = st.text(st.sampled_from(string.ascii_lowercase + string.digits), min_size=1, max_size=8)


@given(st.lists(WORD, min_size=2, max_size=4), WORD, st.text(st.characters(exclude_categories=["C"]), max_size=20))
def test_a_ref_is_taken_apart_as_it_was_put_together(words: list[str], tag: str, part: str) -> None:
    host, repository = words[0], "/".join(words[1:])
    ref = parse_ref(f"oci://{host}/{repository}:{tag}#{quote(part)}")

    assert Place(host=host, repository=repository, reference=tag, part=part or None) == Place.of(ref)
    digest = "sha256:" + 64 * "a"
    assert Place.of(parse_ref(Place.of(ref).version_id(digest))).digest == digest


@given(st.text(st.sampled_from("ab:@#/.-_%[]\\ 05"), max_size=40))
def test_any_ref_is_read_or_refused_and_reads_the_same_again(text: str) -> None:
    try:
        ref = parse_ref(f"oci://{text}")
    except InvalidRef:
        return
    assert ref == parse_ref(ref.canonical)
    assert ref == parse_ref(str(ref))
    Place.of(ref)
