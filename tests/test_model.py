"""Values: that they are frozen, equal by content, and that what is secret in them is not shown."""

import dataclasses
import inspect
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from underlay import model
from underlay.errors import InvalidDigest
from underlay.model import BaseImage, Digest, ImageRecord, ImageRef, ImageVersion
from underlay.values import replace

SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

VALUES = [value for value in vars(model).values() if inspect.isclass(value) and issubclass(value, msgspec.Struct)]


@pytest.mark.parametrize("value", VALUES)
def test_every_value_is_frozen(value: type[msgspec.Struct]) -> None:
    assert value.__struct_config__.frozen


def test_no_value_is_made_otherwise() -> None:
    assert not [value for value in vars(model).values() if inspect.isclass(value) and dataclasses.is_dataclass(value)]


@pytest.mark.parametrize(
    ("algorithm", "length"), [("md5", 32), ("sha1", 40), ("sha224", 56), ("sha256", 64), ("sha384", 96), ("sha512", 128)]
)
def test_a_digest_of_each_algorithm_is_read(algorithm: str, length: int) -> None:
    assert Digest(algorithm, "a" * length) == Digest.parse(f"{algorithm}:{'a' * length}")
    assert Digest(algorithm, "a" * length) == Digest.parse(f" {algorithm.upper()}:{'A' * length}\n")


def test_a_digest_is_written_as_it_is_read() -> None:
    assert f"sha256:{SHA256}" == str(Digest.parse(f"SHA256:{SHA256.upper()}"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        SHA256,
        f"sha3:{SHA256}",
        f"sha256:{SHA256[:-1]}",
        f"sha256:{SHA256}0",
        f"sha256:{'g' * 64}",
        f":{SHA256}",
    ],
)
def test_what_is_no_digest_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidDigest) as error:
        Digest.parse(text)

    assert repr(text) in str(error.value)
    assert error.value.hint


def test_a_hint_says_how_many_digits_the_algorithm_has() -> None:
    with pytest.raises(InvalidDigest) as error:
        Digest.parse("sha512:abc")

    assert "sha512 has 128 hexadecimal digits" == error.value.hint


def test_where_a_ref_is_opened_is_not_shown() -> None:
    ref = ImageRef(scheme="https", canonical="https://h/x", location="https://user:secret@h/x")
    version = ImageVersion(ref=ref, found_at="https://cdn/x?signature=secret")

    assert "https://h/x" == str(ref)
    assert "secret" not in repr(ref) + str(ref) + repr(version)


def test_a_base_image_knows_its_path_and_its_ref() -> None:
    record = ImageRecord(
        layout=1,
        version_id="v",
        ref="https://h/x",
        format="raw",
        size=1,
        virtual_size=1,
        digests=(),
        stored="sha256:",
        as_served=True,
        fetched_at=datetime(2024, 1, 1, tzinfo=UTC),
        underlay="0",
    )
    image = BaseImage(
        name="abc",
        cache=Path("/cache"),
        format="raw",
        size=1,
        virtual_size=1,
        allocated=1,
        last_used=datetime(2024, 1, 1, tzinfo=UTC),
        record=record,
    )

    assert (Path("/cache/abc"), "https://h/x") == (image.path, image.ref)
    assert replace(image, record=None).ref is None
