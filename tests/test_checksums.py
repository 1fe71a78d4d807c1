"""Checksums as people write them, and the files that list them."""

import hashlib
import subprocess
from pathlib import Path
from urllib.parse import quote

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


# ------------------------------------------------------------------------------------------------------- lists of checksums


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


def test_what_lists_nothing_is_told_from_what_lists_others() -> None:
    with pytest.raises(InvalidDigest, match=r"^https://h/SUMS lists no checksums at all$"):
        find_checksum("<!DOCTYPE html>\n<html>\n<body>SHA256SUMS\n", "a.img", what="https://h/SUMS")
    with pytest.raises(InvalidDigest, match=r"^https://h/SUMS does not list 'a\.img'$") as refused:
        find_checksum(f"{OTHER}  b.img\n{OTHER}  c.img\n", "a.img", what="https://h/SUMS")
    assert "it lists 'b.img' and 1 more" in (refused.value.hint or "")


@pytest.mark.parametrize(
    "line",
    [
        f"{SHA256.hex}  ./a.img",
        f"{SHA256.hex} *./a.img",
        f"SHA256 (./a.img) = {SHA256.hex}",
        f"SHA256(a.img)= {SHA256.hex}",
        f"SHA2-256(a.img)= {SHA256.hex}",
        f"{SHA256.hex}\ta.img",
        f"{SHA256.hex}     a.img",
        f"\\{SHA256.hex}  a.img",
        f"\ufeff{SHA256.hex}  a.img",
    ],
)
def test_a_line_is_read_as_other_tools_write_it(line: str) -> None:
    assert SHA256 == find_checksum(f"{line}\n{OTHER}  b.img\n", "a.img")


@pytest.mark.parametrize(
    ("written", "name"), [(r"a\\b.img", "a%5Cb.img"), (r"a\nb.img", "a%0Ab.img"), (r"a\rb.img", "a%0Db.img"), (r"\\n", "%5Cn")]
)
def test_a_name_is_read_with_the_escapes_of_gnu_s_tools(written: str, name: str) -> None:
    for line in (f"\\{SHA256.hex}  {written}", f"\\{SHA256.hex} *{written}", f"\\SHA256 ({written}) = {SHA256.hex}"):
        assert SHA256 == find_checksum(f"{OTHER}  other\n{line}\n", name)
        with pytest.raises(InvalidDigest, match="does not list"):
            find_checksum(f"{OTHER}  other\n{line[1:]}\n", name)  # without its backslash no escape is one


def test_an_escape_that_no_tool_writes_is_no_name() -> None:
    for name in (r"a\tb", "a\\"):
        with pytest.raises(InvalidDigest, match="does not list"):
            find_checksum(f"\\{SHA256.hex}  {name}\n{OTHER}  b\n", name)


@pytest.mark.component("sha256sum")
@pytest.mark.parametrize("name", ["a.img", "a b.img", "a\nb.img", "a\\b.img", " a.img", "a\u2028b.img", "*.img", "-.img"])
@pytest.mark.parametrize("options", [[], ["--tag"], ["--binary"]])
def test_what_sha256sum_writes_is_read(tmp_path: Path, name: str, options: list[str]) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    (tmp_path / "other").write_bytes(b"")
    argv = ["sha256sum", *options, "--", "other", name]
    text = subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True).stdout.decode()
    if name.startswith(" ") and not options:
        name = name.strip()  # a column of blanks is more common than such a name
    assert SHA256 == find_checksum(text, quote(name))


@pytest.mark.parametrize(
    "line", [f"{SHA256.hex}  -", f"{SHA256.hex} *-", f"SHA2-256(stdin)= {SHA256.hex}", f"sha256:{SHA256.hex}"]
)
def test_one_checksum_of_a_file_without_a_name_is_any_s(line: str) -> None:
    assert SHA256 == find_checksum(f"{line}\r\n", "a.img")


def test_one_checksum_of_another_file_is_not_this_one_s() -> None:
    for line in (f"{SHA256.hex}  b.img", f"SHA256 (b.img) = {SHA256.hex}"):
        with pytest.raises(InvalidDigest, match="does not list"):
            find_checksum(line, "a.img")
    with pytest.raises(InvalidDigest, match="does not list"):
        find_checksum(f"{SHA256.hex}  -\n{OTHER}  b.img\n", "a.img")


def test_a_file_that_is_listed_twice_must_be_so_with_one_digest() -> None:
    assert SHA256 == find_checksum(f"{SHA256.hex}  a.img\n{SHA256.hex.upper()} *./a.img\n", "a.img")
    for second in (f"{OTHER}  a.img", f"SHA256 (a.img) = {OTHER}", f"{OTHER}  ./a.img"):
        for lines in ((f"{SHA256.hex}  a.img", second), (second, f"{SHA256.hex}  a.img")):
            with pytest.raises(InvalidDigest, match="disagree"):
                find_checksum("\n".join(lines), "a.img")


def test_weak_digests_that_disagree_are_refused_although_a_stronger_one_is_listed() -> None:
    text = f"SHA512 (a.img) = {HEX['sha512']}\nMD5 (a.img) = {HEX['md5']}\nMD5 (a.img) = {'0' * 32}\n"
    with pytest.raises(InvalidDigest, match="disagree"):
        find_checksum(text, "a.img")


@pytest.mark.parametrize("algorithm", ["md5", "sha1"])
def test_a_list_of_weak_digests_is_a_list(algorithm: str) -> None:
    assert Digest(algorithm, HEX[algorithm]) == find_checksum(f"{HEX[algorithm]}  a.img\n{HEX[algorithm]}  b.img\n", "a.img")


def test_another_algorithm_of_the_same_length_is_not_taken_for_ours() -> None:
    for tag in ("SHA3-256", "BLAKE2s256", "SHA512-256", "SM3"):
        with pytest.raises(InvalidDigest, match="no checksums at all"):
            find_checksum(f"{tag} (a.img) = {SHA256.hex}", "a.img")


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x1e", "\x85", "\r"])
def test_a_name_cannot_begin_a_line_of_its_own(separator: str) -> None:
    text = f"{OTHER}  evil{separator}{OTHER}  a.img\n{SHA256.hex}  a.img\n"
    assert SHA256 == find_checksum(text, "a.img")


def test_of_a_signed_text_only_what_is_signed_is_read() -> None:
    text = (
        "\n-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA512\r\n\r\n# Fedora's lists begin so\r\n"
        f"SHA256 (a.img) = {SHA256.hex}\r\n- {OTHER}  -dash.img\r\n"
        f"-----BEGIN PGP SIGNATURE-----\r\n\r\n{OTHER}  a.img\r\n{OTHER}  c.img\r\n-----END PGP SIGNATURE-----\r\n"
        f"{OTHER}  a.img\r\n"
    )
    assert SHA256 == find_checksum(text, "a.img")
    assert Digest("sha256", OTHER) == find_checksum(text, "-dash.img")
    with pytest.raises(InvalidDigest, match="does not list"):
        find_checksum(text, "c.img")


def test_headers_of_a_signed_text_are_not_signed() -> None:
    text = f"-----BEGIN PGP SIGNED MESSAGE-----\n{OTHER}  a.img\n\n{SHA256.hex}  a.img\n-----BEGIN PGP SIGNATURE-----\n"
    assert SHA256 == find_checksum(text, "a.img")
