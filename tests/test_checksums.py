"""Checksums as people write them, and the files that list them."""

import hashlib

import pytest

from underlay.checksums import algorithm_of, find_checksum, is_checksum_url, name_in_url, parse_checksum
from underlay.errors import InvalidDigest
from underlay.model import DIGEST_LENGTHS, Digest

CONTENT = b"an image"
HEX = {name: hashlib.new(name, CONTENT, usedforsecurity=False).hexdigest() for name in DIGEST_LENGTHS}
SHA256 = Digest("sha256", HEX["sha256"])
OTHER = "0" * 64


@pytest.mark.parametrize("algorithm", DIGEST_LENGTHS)
def test_a_bare_checksum_is_of_the_algorithm_of_its_length(algorithm: str) -> None:
    assert Digest(algorithm, HEX[algorithm]) == parse_checksum(HEX[algorithm])


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (HEX["sha256"].upper(), None),
        (f"sha256:{HEX['sha256']}", None),
        (f"SHA256:{HEX['sha256'].upper()}", None),
        (f" {HEX['sha256']}\n", None),
        (HEX["sha256"], "sha256"),
        (HEX["sha256"].upper(), "SHA256"),
        (f"sha256:{HEX['sha256']}", "sha256"),
    ],
)
def test_case_and_a_prefix_do_not_matter(text: str, algorithm: str | None) -> None:
    assert SHA256 == parse_checksum(text, algorithm=algorithm)


def test_the_given_algorithm_comes_first_then_the_prefix_then_the_length() -> None:
    assert "sha512" == algorithm_of(f"md5:{OTHER}", algorithm="sha512")
    assert "md5" == algorithm_of(f"md5:{OTHER}")
    assert "sha256" == algorithm_of(OTHER)


@pytest.mark.parametrize("text", ["crc32:00000000", "sha3_256:" + OTHER, ":" + "0" * 5, "0" * 63, "", "sha256"])
def test_an_algorithm_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest):
        algorithm_of(text)


@pytest.mark.parametrize(
    ("text", "algorithm"), [("0" * 63, "sha256"), ("sha256:" + "0" * 32, None), ("g" * 64, None), ("sha256:", None)]
)
def test_digits_that_are_not_the_algorithm_s_are_refused(text: str, algorithm: str | None) -> None:
    with pytest.raises(InvalidDigest):
        parse_checksum(text, algorithm=algorithm)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("http://h/SUMS", True), ("HTTPS://h/SUMS", True), (OTHER, False), ("sha256:" + OTHER, False), ("file:///SUMS", False)],
)
def test_a_url_in_a_checksum_s_place_is_told(text: str, *, expected: bool) -> None:
    assert expected == is_checksum_url(text)


def test_the_name_of_an_image_is_the_end_of_its_url_s_path() -> None:
    assert "a.img" == name_in_url("https://host/dir/a.img?token=/b.img#c")


# ------------------------------------------------------------------------------------------------------- files of checksums


@pytest.mark.parametrize(
    "line",
    [
        f"{SHA256.hex}  a.img",
        f"{SHA256.hex} *a.img",
        f"{SHA256.hex} a.img",
        f"{SHA256.hex.upper()}  a.img",
        f"SHA256 (a.img) = {SHA256.hex}",
        f"SHA-256 (a.img) = {SHA256.hex}",
        f"  {SHA256.hex}  a.img  ",
    ],
)
def test_a_line_is_read_in_each_form(line: str) -> None:
    text = f"# comment a.img\n\n{OTHER}  b.img\r\n{line}\r\n{OTHER}  c.img\n"
    assert SHA256 == find_checksum(text, "a.img")


@pytest.mark.parametrize("algorithm", DIGEST_LENGTHS)
def test_a_file_of_one_checksum_needs_no_name(algorithm: str) -> None:
    assert Digest(algorithm, HEX[algorithm]) == find_checksum(f"# made by hand\n{HEX[algorithm].upper()}\n", "a.img")


@pytest.mark.parametrize("listed", ["aXimg", "ba.img", "a.img.sig", "a.img2", "dir/a.img", "A.img"])
def test_a_name_is_found_as_it_is_and_not_as_a_pattern(listed: str) -> None:
    with pytest.raises(InvalidDigest, match="does not list"):
        find_checksum(f"{OTHER}  {listed}\n{OTHER}  c.img\n", "a.img")
    assert SHA256 == find_checksum(f"{OTHER}  {listed}\n{SHA256.hex}  a.img\n", "a.img")


@pytest.mark.parametrize("name", ["my image.img", "a (1).img", "a+b[c]*.img", "*.img", "b\u00e4r.img"])
def test_a_name_may_have_any_characters(name: str) -> None:
    for line in (f"{SHA256.hex}  {name}", f"{SHA256.hex} *{name}", f"SHA256 ({name}) = {SHA256.hex}"):
        assert SHA256 == find_checksum(f"{OTHER}  other\n{line}\n", name)


def test_a_name_that_is_quoted_in_the_url_is_found_as_it_is_written_in_the_file() -> None:
    assert SHA256 == find_checksum(f"{SHA256.hex}  my image.img\n{OTHER}  b\n", "my%20image.img")


def test_of_several_algorithms_the_strongest_is_taken() -> None:
    text = f"MD5 (a.img) = {HEX['md5']}\nSHA512 (a.img) = {HEX['sha512']}\nSHA1 (a.img) = {HEX['sha1']}\n"
    assert Digest("sha512", HEX["sha512"]) == find_checksum(text, "a.img")


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "<html>not found</html>", "a.img", f"SHA256 (a.img) = {OTHER}0", f"{OTHER}0  a.img"]
)
def test_a_file_that_lists_no_such_checksum_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest):
        find_checksum(text, "a.img")
