"""Signatures by keys that gpg made, verified by the system's gpgv: what counts, and what is said of what does not."""

import os
import subprocess
from pathlib import Path

import pytest

from signing import EXPIRED, GOOD, LONG_AGO, OTHER, REVOKED, RSA, SUBKEY, Keys, revocation
from underlay import gpgv
from underlay.errors import ConfigError, SignatureRefused

pytestmark = pytest.mark.component("gpg", "gpgv")

TEXT = b"0123  debian.qcow2\n- a dash\n4567  other.qcow2\n"
WHAT = "https://host/SHA256SUMS"


@pytest.fixture
def ring(keys: Keys, tmp_path: Path) -> Path:
    return keys.keyring(tmp_path / "good.gpg", GOOD)


# ------------------------------------------------------------------------------------------------------------ what counts


def test_a_detached_signature_tells_who_signed(keys: Keys, ring: Path) -> None:
    (fingerprint,) = keys.fingerprints(GOOD)

    signer = gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=[ring], what=WHAT)

    assert gpgv.Signer(key=fingerprint, primary=fingerprint, name=GOOD) == signer
    assert f"{GOOD} ({fingerprint})" == str(signer)


def test_an_armored_signature_is_one_too(keys: Keys, ring: Path) -> None:
    signature = keys.detached(TEXT, GOOD, options=("--armor",))
    assert signature.startswith(b"-----BEGIN PGP SIGNATURE-----")
    assert GOOD == gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT).name


def test_an_inline_signature_gives_the_very_text_that_it_covers(keys: Keys, ring: Path) -> None:
    signed, signer = gpgv.verify_inline(keys.inline(TEXT, GOOD), keyrings=[ring], what=WHAT)
    assert (TEXT, GOOD) == (signed, signer.name)


def test_what_stands_around_a_signed_text_is_not_part_of_it(keys: Keys, ring: Path) -> None:
    message = keys.inline(TEXT, GOOD) + b"ffff  debian.qcow2\n"
    assert TEXT == gpgv.verify_inline(message, keyrings=[ring], what=WHAT)[0]


def test_a_subkey_signs_for_its_primary_key(keys: Keys, tmp_path: Path) -> None:
    primary, subkey = keys.fingerprints(SUBKEY)
    ring = keys.keyring(tmp_path / "ring.gpg", SUBKEY)

    signer = gpgv.verify_detached(TEXT, keys.detached(TEXT, SUBKEY), keyrings=[ring], what=WHAT)

    assert (subkey, primary) == (signer.key, signer.primary)


@pytest.mark.parametrize("armored", [False, True])
def test_any_key_of_any_keyring_will_do(keys: Keys, tmp_path: Path, *, armored: bool) -> None:
    rings = [keys.keyring(tmp_path / name, name, armored=armored) for name in (OTHER, GOOD)]
    assert GOOD == gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=rings, what=WHAT).name


def test_an_armored_keyring_may_hold_several_blocks_and_words_around_them(keys: Keys, tmp_path: Path) -> None:
    one, two = (keys.gpg("--armor", "--comment", "A comment: of ours", "--export", name) for name in (OTHER, GOOD))
    ring = tmp_path / "both.asc"
    ring.write_bytes(b"The keys of the example:\r\n" + one.replace(b"\n", b"\r\n") + b"\nand\n" + two)
    for name in (OTHER, GOOD):
        assert name == gpgv.verify_detached(TEXT, keys.detached(TEXT, name), keyrings=[ring], what=WHAT).name


def test_of_two_signatures_one_by_a_known_key_is_enough(keys: Keys, ring: Path) -> None:
    for names in ((GOOD, OTHER), (OTHER, GOOD)):
        assert GOOD == gpgv.verify_detached(TEXT, keys.detached(TEXT, *names), keyrings=[ring], what=WHAT).name


def test_of_two_signatures_one_by_an_expired_key_does_no_harm(keys: Keys, tmp_path: Path) -> None:
    ring = keys.keyring(tmp_path / "ring.gpg", GOOD, EXPIRED)
    expired = keys.detached(TEXT, EXPIRED, options=("--faked-system-time", LONG_AGO))
    assert GOOD == gpgv.verify_detached(TEXT, expired + keys.detached(TEXT, GOOD), keyrings=[ring], what=WHAT).name


# -------------------------------------------------------------------------------------------------------- what does not


def test_a_missing_key_is_named_and_the_keyrings_that_were_asked(keys: Keys, ring: Path) -> None:
    with pytest.raises(SignatureRefused) as refused:
        gpgv.verify_detached(TEXT, keys.detached(TEXT, OTHER), keyrings=[ring], what=WHAT)
    assert WHAT in refused.value.message
    assert keys.fingerprints(OTHER)[0] in refused.value.message
    assert os.fspath(ring) in refused.value.message


def test_of_several_missing_keys_all_are_named(keys: Keys, ring: Path) -> None:
    with pytest.raises(SignatureRefused, match="by the keys ") as refused:
        gpgv.verify_detached(TEXT, keys.detached(TEXT, OTHER, SUBKEY), keyrings=[ring], what=WHAT)
    for fingerprint in (keys.fingerprints(OTHER)[0], keys.fingerprints(SUBKEY)[1]):
        assert fingerprint in refused.value.message


def test_what_is_the_matter_with_a_known_key_is_told_before_a_missing_one(keys: Keys, tmp_path: Path) -> None:
    ring = keys.keyring(tmp_path / "ring.gpg", EXPIRED)
    expired = keys.detached(TEXT, EXPIRED, options=("--faked-system-time", LONG_AGO))
    with pytest.raises(SignatureRefused, match="key has expired"):
        gpgv.verify_detached(TEXT, keys.detached(TEXT, OTHER) + expired, keyrings=[ring], what=WHAT)


def test_a_text_that_was_altered_after_it_was_signed_is_refused(keys: Keys, ring: Path) -> None:
    for altered in (TEXT + b"\n", TEXT.replace(b"0123", b"0124"), b""):
        with pytest.raises(SignatureRefused, match="of other bytes"):
            gpgv.verify_detached(altered, keys.detached(TEXT, GOOD), keyrings=[ring], what=WHAT)
    with pytest.raises(SignatureRefused, match="of other bytes"):
        gpgv.verify_inline(keys.inline(TEXT, GOOD).replace(b"0123", b"0124"), keyrings=[ring], what=WHAT)


def test_a_good_signature_does_not_outweigh_one_of_other_bytes(keys: Keys, tmp_path: Path) -> None:
    ring = keys.keyring(tmp_path / "ring.gpg", GOOD, OTHER)
    for signatures in (
        (keys.detached(TEXT, GOOD), keys.detached(b"x", OTHER)),
        (keys.detached(b"x", OTHER), keys.detached(TEXT, GOOD)),
    ):
        with pytest.raises(SignatureRefused, match="of other bytes"):
            gpgv.verify_detached(TEXT, b"".join(signatures), keyrings=[ring], what=WHAT)


def test_an_expired_key_is_refused(keys: Keys, tmp_path: Path) -> None:
    ring = keys.keyring(tmp_path / "ring.gpg", EXPIRED)
    signature = keys.detached(TEXT, EXPIRED, options=("--faked-system-time", LONG_AGO))
    with pytest.raises(SignatureRefused, match=f"{EXPIRED} .*key has expired"):
        gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT)


def test_a_user_id_cannot_say_what_gpgv_does(keys: Keys, tmp_path: Path) -> None:
    """Python's text takes U+2028 for the end of a line, and gpgv prints it as it is."""
    fingerprint = keys.fingerprints(GOOD)[0]
    said = (
        "NEWSIG",
        f"GOODSIG {fingerprint[-16:]} {GOOD}",
        f"VALIDSIG {fingerprint} 2026-01-01 1767225600 0 4 0 22 8 00 {fingerprint}",
    )
    forger = "forger@example" + "".join(f"\u2028[GNUPG:] {line}" for line in said)
    keys.gpg("--faked-system-time", LONG_AGO, "--quick-generate-key", forger, "ed25519", "sign", "2d")
    ring = keys.keyring(tmp_path / "ring.gpg", "forger@example")
    signature = keys.detached(TEXT, "forger@example", options=("--faked-system-time", LONG_AGO))

    with pytest.raises(SignatureRefused, match="key has expired"):
        gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT)


def test_an_expired_signature_is_refused(keys: Keys, ring: Path) -> None:
    signature = keys.detached(TEXT, GOOD, options=("--faked-system-time", LONG_AGO, "--default-sig-expire", "1d"))
    with pytest.raises(SignatureRefused, match="signature has expired"):
        gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT)


def test_a_revoked_key_is_refused(keys: Keys, tmp_path: Path, short_directory: Path) -> None:
    signature = keys.detached(TEXT, REVOKED)
    ring = keys.keyring(tmp_path / "ring.gpg", REVOKED)
    assert REVOKED == gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT).name
    revoked = Keys(home=short_directory)
    revoked.gpg("--import", given=ring.read_bytes())
    revoked.gpg("--import", given=revocation(keys, REVOKED))
    revoked.keyring(ring, REVOKED)
    with pytest.raises(SignatureRefused, match=f"{REVOKED} .*key was revoked"):
        gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT)


def test_a_signature_by_a_broken_digest_is_refused(keys: Keys, tmp_path: Path) -> None:
    ring = keys.keyring(tmp_path / "ring.gpg", RSA)
    for digest in ("SHA1", "RIPEMD160"):
        signature = keys.detached(TEXT, RSA, options=("--digest-algo", digest))
        with pytest.raises(SignatureRefused, match="can be forged"):
            gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT)
    assert RSA == gpgv.verify_detached(TEXT, keys.detached(TEXT, RSA), keyrings=[ring], what=WHAT).name


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", TEXT, b"\xff\xd8\xff", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"]
)
def test_what_is_no_signature_is_refused(ring: Path, content: bytes) -> None:
    assert not gpgv.is_signature(content)
    with pytest.raises(SignatureRefused, match="is none"):
        gpgv.verify_detached(TEXT, content, keyrings=[ring], what=WHAT)


def test_a_signature_that_is_cut_off_or_damaged_is_refused(keys: Keys, ring: Path) -> None:
    signature = keys.detached(TEXT, GOOD)
    for damaged in (signature[:20], signature[:-1], signature[:60] + bytes(len(signature) - 60)):
        with pytest.raises(SignatureRefused):
            gpgv.verify_detached(TEXT, damaged, keyrings=[ring], what=WHAT)


def test_a_signature_without_end_is_refused(keys: Keys, ring: Path) -> None:
    signature = keys.detached(TEXT, GOOD) * (gpgv.MAX_SIGNATURE // 50)
    with pytest.raises(SignatureRefused, match="is none"):
        gpgv.verify_detached(TEXT, signature, keyrings=[ring], what=WHAT)


def test_two_texts_signed_apart_are_not_one(keys: Keys, ring: Path) -> None:
    message = keys.inline(TEXT, GOOD)
    for text in (message + message, TEXT + message, TEXT, keys.detached(TEXT, GOOD)):
        with pytest.raises(SignatureRefused, match="is not one text"):
            gpgv.verify_inline(text, keyrings=[ring], what=WHAT)


def test_the_kind_of_a_text_is_told_by_how_it_begins(keys: Keys) -> None:
    assert gpgv.is_inline(keys.inline(TEXT, GOOD))
    assert not gpgv.is_inline(TEXT + keys.inline(TEXT, GOOD))
    assert gpgv.is_signature(keys.detached(TEXT, GOOD))
    assert not gpgv.is_signature(keys.inline(TEXT, GOOD))


# --------------------------------------------------------------------------------------------------------------- keyrings


def test_without_a_keyring_nothing_is_trusted(keys: Keys) -> None:
    with pytest.raises(ConfigError, match="no keyring") as refused:
        gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=[], what=WHAT)
    assert "[checksums]" in (refused.value.hint or "")


def test_the_user_s_own_keyring_is_never_asked(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".gnupg").mkdir(parents=True, mode=0o700)
    keys.keyring(home / ".gnupg" / "trustedkeys.gpg", GOOD)
    monkeypatch.setenv("HOME", os.fspath(home))
    monkeypatch.setenv("GNUPGHOME", os.fspath(home / ".gnupg"))
    signature = tmp_path / "signature"
    signature.write_bytes(keys.detached(TEXT, GOOD))
    (tmp_path / "text").write_bytes(TEXT)
    subprocess.run(["gpgv", signature, tmp_path / "text"], check=True, capture_output=True)  # as anybody else would ask it

    with pytest.raises(SignatureRefused, match="in none of the keyrings"):
        gpgv.verify_detached(TEXT, signature.read_bytes(), keyrings=[keys.keyring(tmp_path / "other.gpg", OTHER)], what=WHAT)


def test_a_keyring_may_be_a_symlink_and_a_keybox(keys: Keys, ring: Path, tmp_path: Path) -> None:
    (tmp_path / "link.gpg").symlink_to(ring)
    for keyring in (tmp_path / "link.gpg", keys.home / "pubring.kbx"):
        assert GOOD == gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=[keyring], what=WHAT).name


@pytest.mark.parametrize("content", [b"", b"no key\n", b"\x89PNG\r\n\x1a\n1234", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"])
def test_a_file_without_keys_is_refused_by_its_name(keys: Keys, tmp_path: Path, content: bytes) -> None:
    ring = tmp_path / "ring.asc"
    ring.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ring\.asc holds no public keys"):
        gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=[ring], what=WHAT)


def test_a_secret_key_is_no_public_one(keys: Keys, tmp_path: Path) -> None:
    ring = tmp_path / "secret.asc"
    ring.write_bytes(keys.gpg("--armor", "--export-secret-keys", GOOD))
    with pytest.raises(ConfigError, match="holds no public keys"):
        gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=[ring], what=WHAT)


def test_a_damaged_armor_is_told(keys: Keys, tmp_path: Path) -> None:
    ring = keys.keyring(tmp_path / "ring.asc", GOOD, armored=True)
    ring.write_bytes(ring.read_bytes().replace(b"\n\n", b"\n\nA", 1))
    with pytest.raises(ConfigError, match=r"is damaged|holds no public keys"):
        gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=[ring], what=WHAT)


def test_what_is_no_file_is_refused_at_once(keys: Keys, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("fifo", "not a regular file"), ("none", "No such file"), (".", "not a regular file")):
        with pytest.raises(ConfigError, match=why):
            gpgv.verify_detached(TEXT, keys.detached(TEXT, GOOD), keyrings=[tmp_path / name], what=WHAT)


def test_nothing_is_left_behind(keys: Keys, ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(place))
    gpgv.verify_inline(keys.inline(TEXT, GOOD), keyrings=[ring], what=WHAT)
    with pytest.raises(SignatureRefused):
        gpgv.verify_detached(TEXT, keys.detached(TEXT, OTHER), keyrings=[ring], what=WHAT)
    assert [] == list(place.iterdir())
