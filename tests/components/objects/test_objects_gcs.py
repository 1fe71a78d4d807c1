"""Images in the buckets of fake-gcs-server, which stands in for Google's. It numbers objects as that does."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_places import GcsPlace, gcs_place

from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged
from underlay.model import ImageVersion
from underlay.refs import parse_ref
from underlay.sources.objects.source import ObjectSource
from underlay.values import replace

pytestmark = pytest.mark.component("fake-gcs-server")

CONTENT = os.urandom(300_000)


@pytest.fixture(scope="session")
def gcs() -> Iterator[GcsPlace]:
    """A bucket on a server that is started once for the tests of one process."""
    with gcs_place("images") as place:
        yield place


def described(place: GcsPlace, ref: str) -> ImageVersion:
    return place.source.describe(parse_ref(ref))


def fetched(place: GcsPlace, version: ImageVersion, *, offset: int = 0) -> bytes:
    buffer, found = memoryview(bytearray(70_000)), b""
    with place.source.open(version, offset=offset) as stream:
        while length := stream.readinto(buffer):
            found += buffer[:length]
    return found


def test_an_object_is_described_by_its_generation_and_served_whole_and_from_an_offset_on(gcs: GcsPlace) -> None:
    generation = gcs.put("debian/ein Bild.raw", CONTENT)
    version = described(gcs, gcs.ref("debian/ein Bild.raw"))
    assert (len(CONTENT), f"{gcs.ref('debian/ein Bild.raw')}#{generation}") == (version.size, version.id)
    for offset in (0, 1, 299_999, 300_000):
        assert CONTENT[offset:] == fetched(gcs, version, offset=offset)


def test_a_ref_with_a_generation_is_fixed(gcs: GcsPlace) -> None:
    generation = gcs.put("fixed", CONTENT)
    by_generation = parse_ref(f"{gcs.ref('fixed')}?generation={generation}")
    assert described(gcs, gcs.ref("fixed")).id == gcs.source.fixed_id(by_generation)
    assert CONTENT == fetched(gcs, described(gcs, str(by_generation)))


@pytest.mark.parametrize("offset", [0, 5, 300_000])
def test_an_object_that_was_replaced_after_its_description_is_refused(gcs: GcsPlace, offset: int) -> None:
    """Its generation is gone, which is told from an object that is gone."""
    gcs.put("replaced", CONTENT)
    version = described(gcs, gcs.ref("replaced"))
    gcs.put("replaced", CONTENT[::-1])
    with pytest.raises(SourceChanged):
        fetched(gcs, version, offset=offset)


def test_a_generation_that_the_bucket_keeps_is_sent_although_a_newer_one_is_there() -> None:
    with gcs_place("kept", keeps_versions=True) as place:
        place.put("image", CONTENT)
        version = described(place, place.ref("image"))
        place.put("image", CONTENT[::-1])
        assert CONTENT[5:] == fetched(place, version, offset=5)


def test_an_object_that_is_not_there_is_not_found(gcs: GcsPlace) -> None:
    gcs.put("removed", CONTENT)
    version = described(gcs, gcs.ref("removed"))
    gcs.withdraw("removed")
    with pytest.raises(ImageNotFound):
        fetched(gcs, version)
    for ref in (gcs.ref("gone"), "gs://no-such-bucket/image"):
        with pytest.raises(ImageNotFound):
            described(gcs, ref)


def test_a_credentials_file_that_is_none_is_named(gcs: GcsPlace, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text('{"secret": ')
    for file in (tmp_path / "key.json", tmp_path / "gone.json"):
        source = ObjectSource(gs=replace(gcs.source.gs, anonymous=False, credentials_file=file))
        with pytest.raises(NotAuthorized, match=f"the credentials in {file} cannot be used") as caught:
            source.describe(parse_ref(gcs.ref("image")))
        assert "secret" not in caught.value.message
