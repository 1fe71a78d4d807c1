"""Images in Azurite's containers, which stand in for Azure's."""

import os
from collections.abc import Iterator

import pytest
from object_places import AzurePlace, azure_place

from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged, UnderlayError
from underlay.model import ImageVersion
from underlay.refs import parse_ref
from underlay.sources.objects.access import AzureAccess
from underlay.sources.objects.source import ObjectSource
from underlay.values import replace

pytestmark = pytest.mark.component("azurite")

CONTENT = os.urandom(300_000)


@pytest.fixture(scope="session")
def azure() -> Iterator[AzurePlace]:
    """A container in an Azurite that is started once for the tests of one process."""
    with azure_place("images") as place:
        yield place


def described(place: AzurePlace, key: str, source: ObjectSource | None = None) -> ImageVersion:
    return (source or place.source).describe(parse_ref(place.ref(key)))


def fetched(place: AzurePlace, version: ImageVersion, *, offset: int = 0) -> bytes:
    buffer, found = memoryview(bytearray(70_000)), b""
    with place.source.open(version, offset=offset) as stream:
        while length := stream.readinto(buffer):
            found += buffer[:length]
    return found


def test_a_blob_is_described_and_served_whole_and_from_an_offset_on(azure: AzurePlace) -> None:
    azure.put("debian/ein Bild.raw", CONTENT)
    version = described(azure, "debian/ein Bild.raw")
    assert (len(CONTENT), None, ()) == (version.size, version.id, version.digests)
    assert version.validator is not None
    for offset in (0, 1, 299_999, 300_000):
        assert CONTENT[offset:] == fetched(azure, version, offset=offset)


def test_an_empty_blob_is_served_empty(azure: AzurePlace) -> None:
    azure.put("empty", b"")
    assert b"" == fetched(azure, described(azure, "empty"))


@pytest.mark.parametrize("offset", [0, 5])
def test_a_blob_that_was_replaced_after_its_description_is_refused(azure: AzurePlace, offset: int) -> None:
    azure.put("replaced", CONTENT)
    version = described(azure, "replaced")
    azure.put("replaced", CONTENT[::-1])
    with pytest.raises(SourceChanged):
        fetched(azure, version, offset=offset)


def test_a_missing_blob_and_a_missing_container_are_told_apart(azure: AzurePlace) -> None:
    with pytest.raises(ImageNotFound, match="the container has no such object"):
        described(azure, "gone")
    with pytest.raises(ImageNotFound, match="there is no such container"):
        azure.source.describe(parse_ref("az://no-such-container/image"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": "QUFBQQ=="}, "the key of the account devstoreaccount1"),
        ({"key": "not base64!"}, "the key of the account devstoreaccount1 cannot be used"),
        ({"key": None, "anonymous": True}, "requests without credentials"),
        ({"key": None, "sas": "sv=2021-12-02&sig=secret"}, "the shared access signature"),
    ],
    ids=["wrong-key", "no-key", "anonymous", "signature"],
)
def test_wrong_credentials_are_named_and_not_told(azure: AzurePlace, change: dict[str, object], says: str) -> None:
    azure.put("image", CONTENT)
    source = ObjectSource(az=replace(azure.access, **change))  # type: ignore[arg-type]
    with pytest.raises(NotAuthorized, match=says) as caught:
        described(azure, "image", source)
    assert "secret" not in caught.value.message


def test_an_account_must_be_named(azure: AzurePlace) -> None:
    with pytest.raises(UnderlayError, match="no storage account") as caught:
        described(azure, "image", ObjectSource(az=AzureAccess(endpoint=azure.url, allow_http=True)))
    assert "AZURE_STORAGE_ACCOUNT_NAME" in str(caught.value.hint)
