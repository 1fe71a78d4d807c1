"""Lists of checksums from a real server, signed by keys that gpg made: what is believed, refused, and asked for again."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from signing import EXPIRED, GOOD, LONG_AGO, OTHER, SUBKEY, Keys
from underlay import checksumlist
from underlay.checksumlist import ChecksumList, ask, ask_again, is_list
from underlay.config import parse_config
from underlay.contracts import ImageSource
from underlay.errors import (
    ConfigError,
    DigestMismatch,
    ImageNotFound,
    InvalidDigest,
    InvalidRef,
    NotAuthorized,
    SignatureRefused,
    SourceRefused,
    SourceUnavailable,
)
from underlay.model import Digest, Event, Progress
from underlay.refs import parse_ref
from underlay.registry import open_source
from underlay.testing.httpserver import Served, Server, redirect, serving
from underlay.values import replace
from underlay.web import Web

DIGEST = Digest("sha256", hashlib.sha256(b"debian").hexdigest())
OLD = Digest("sha256", hashlib.sha256(b"bullseye").hexdigest())
LIST = f"{OLD.hex}  x-debian.qcow2\n{DIGEST.hex}  debian.qcow2\n{OLD.hex}  debian.qcow2.asc\n".encode()
OLD_LIST = f"{OLD.hex}  debian.qcow2\n".encode()

needs_gpg = pytest.mark.component("gpg", "gpgv")


@dataclass(frozen=True, slots=True)
class Heard:
    """Remembers events."""

    events: list[Event] = field(default_factory=list)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, progress: Progress) -> None:
        """Let it pass."""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/SUMS": Served(LIST)}) as running:
        yield running


@pytest.fixture
def ring(keys: Keys, tmp_path: Path) -> Path:
    return keys.keyring(tmp_path / "good.gpg", GOOD)


def wanted(
    server: Server, *keyrings: Path, path: str = "/SUMS", of: str = "/debian.qcow2", signature: str | None = None
) -> ChecksumList:
    return ChecksumList(
        at=parse_ref(server.url(path)),
        of=parse_ref(server.url(of)),
        signature=None if signature is None else parse_ref(server.url(signature)),
        keyrings=keyrings,
        web=Web(connect_timeout=5, read_timeout=5),
        sources=lambda scheme: open_source(scheme, {}),
        observer=Heard(),
    )


def events(asked: ChecksumList) -> list[tuple[str, str]]:
    assert isinstance(asked.observer, Heard)
    return [(event.code, event.detail) for event in asked.observer.events]


def mismatch(expected: Digest = DIGEST) -> DigestMismatch:
    return DigestMismatch("the image", expected=str(expected), actual=str(OLD))


# ---------------------------------------------------------------------------------------------------------- without keyrings


def test_a_list_gives_the_digest_of_the_image_s_own_name_and_says_that_it_is_unsigned(server: Server) -> None:
    asked = wanted(server)
    listed = ask(asked)
    assert (DIGEST, None) == (listed.digest, listed.signer)
    assert [("checksum-listed", f"{server.url('/SUMS')} lists {DIGEST}, unsigned")] == events(asked)
    assert ["/SUMS"] == [request.path for request in server.requests]


def test_an_inline_signature_is_read_through_and_not_believed(server: Server) -> None:
    text = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + LIST + b"-----BEGIN PGP SIGNATURE-----\n\nAAAA\n"
    server.serve("/SUMS", Served(text))
    assert (DIGEST, None) == ((listed := ask(wanted(server))).digest, listed.signer)


@pytest.mark.parametrize("of", ["/debian.qcow2?X-Amz-Signature=1", "/some/where/debian%2Eqcow2", "/debian.qcow2#x"])
def test_the_name_is_the_last_segment_of_the_ref_s_path(server: Server, of: str) -> None:
    assert DIGEST == ask(wanted(server, of=of)).digest


@pytest.mark.parametrize("of", ["/", "/bian.qcow2", "/x/y-debian.qcow2", "/debian.qcow", "/*.qcow2", "/Debian.qcow2"])
def test_another_name_is_not_taken(server: Server, of: str) -> None:
    with pytest.raises(InvalidDigest, match="/SUMS does not list") as refused:
        ask(wanted(server, of=of))
    assert "x-debian.qcow2" in (refused.value.hint or "")


def test_a_list_may_be_behind_a_redirect(server: Server) -> None:
    server.serve("/latest", redirect("/SUMS"))
    assert DIGEST == ask(wanted(server, path="/latest")).digest


def test_a_list_of_one_checksum_needs_no_name(server: Server) -> None:
    server.serve("/debian.qcow2.sha256", Served(DIGEST.hex.encode()))
    assert DIGEST == ask(wanted(server, path="/debian.qcow2.sha256")).digest


def test_a_web_page_is_no_list(server: Server) -> None:
    server.serve("/SUMS", Served(b"<!DOCTYPE html><title>debian.qcow2</title>\n" * 100))
    with pytest.raises(InvalidDigest, match="lists no checksums at all"):
        ask(wanted(server))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_list_without_end_is_not_read_to_it(server: Server, *, chunked: bool) -> None:
    server.serve("/SUMS", Served(LIST + b"#" * (64 << 20), chunked=chunked))
    with pytest.raises(SourceRefused, match=f"more than {checksumlist.LIMIT} bytes"):
        ask(wanted(server))
    assert server.sent("/SUMS") < 32 << 20


@pytest.mark.parametrize(("status", "kind"), [(404, ImageNotFound), (403, NotAuthorized), (503, SourceUnavailable)])
def test_a_list_that_does_not_come_is_named(server: Server, status: int, kind: type[Exception]) -> None:
    server.serve("/SUMS", Served(status=status))
    with pytest.raises(kind, match=f"/SUMS.* {status}"):
        ask(wanted(server))


def test_credentials_in_the_list_s_url_are_sent_and_never_told(server: Server) -> None:
    server.serve("/SUMS", Served(LIST, credentials="user:secret"))
    asked = replace(wanted(server), at=parse_ref(server.url("/SUMS", credentials="user:secret")))
    assert DIGEST == ask(asked).digest
    assert "secret" not in repr(asked) + str(events(asked))


def test_a_list_may_be_a_file_below_the_allowed_paths(server: Server, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(LIST)

    def allowed(scheme: str) -> ImageSource:
        return open_source(scheme, {"allowed_paths": (tmp_path,)})

    asked = replace(wanted(server), at=parse_ref(f"file://{tmp_path}/SHA256SUMS"))
    assert DIGEST == ask(replace(asked, sources=allowed)).digest
    with pytest.raises(SourceRefused, match="outside the allowed paths"):
        ask(asked)
    (tmp_path / "SHA256SUMS").write_bytes(LIST + b"#" * (2 << 20))
    with pytest.raises(SourceRefused, match="more than"):
        ask(replace(asked, sources=allowed))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/SUMS", True),
        ("file:///SUMS", True),
        ("s3://bucket/SUMS", True),
        (f"sha256:{DIGEST.hex}", False),
        (DIGEST.hex, False),
        ("md5:", False),
    ],
)
def test_a_list_is_told_from_a_digest(text: str, *, expected: bool) -> None:
    assert expected == is_list(text)


# -------------------------------------------------------------------------------------------------------------- with keyrings


@needs_gpg
@pytest.mark.parametrize("suffix", [".gpg", ".asc", ".sign", ".sig"])
@pytest.mark.parametrize("options", [(), ("--armor",)])
def test_the_signature_beside_a_list_is_found(
    server: Server, keys: Keys, ring: Path, suffix: str, options: tuple[str, ...]
) -> None:
    server.serve(f"/SUMS{suffix}", Served(keys.detached(LIST, GOOD, options=options)))
    asked = wanted(server, ring)
    listed = ask(asked)
    assert (DIGEST, GOOD) == (listed.digest, listed.signer and listed.signer.name)
    assert f"signed by {GOOD} ({keys.fingerprints(GOOD)[0]})" in events(asked)[0][1]


@needs_gpg
def test_a_signature_in_the_list_is_verified_and_nothing_else_asked_for(server: Server, keys: Keys, ring: Path) -> None:
    server.serve("/SUMS", Served(keys.inline(LIST, GOOD) + f"{OLD.hex}  debian.qcow2\n".encode()))
    listed = ask(wanted(server, ring))
    assert (DIGEST, GOOD) == (listed.digest, listed.signer and listed.signer.name)
    assert 1 == len(server.requests)


@needs_gpg
def test_a_signature_elsewhere_is_named(server: Server, keys: Keys, ring: Path) -> None:
    server.serve("/elsewhere", Served(keys.detached(LIST, GOOD)))
    assert ask(wanted(server, ring, signature="/elsewhere")).signer is not None
    with pytest.raises(ImageNotFound, match="/nowhere"):
        ask(wanted(server, ring, signature="/nowhere"))


@needs_gpg
def test_the_query_of_a_list_stays_behind_its_path(server: Server, keys: Keys, ring: Path) -> None:
    server.serve("/SUMS.gpg?token=1", Served(keys.detached(LIST, GOOD)))
    assert ask(wanted(server, ring, path="/SUMS?token=1")).signer is not None


@needs_gpg
def test_a_signature_of_a_file_lies_beside_it(server: Server, keys: Keys, ring: Path, tmp_path: Path) -> None:
    (tmp_path / "my SUMS").write_bytes(LIST)
    (tmp_path / "my SUMS.sign").write_bytes(keys.detached(LIST, GOOD))
    asked = replace(
        wanted(server, ring),
        at=parse_ref(f"file://{tmp_path}/my%20SUMS"),
        sources=lambda scheme: open_source(scheme, {"allowed_paths": (tmp_path,)}),
    )
    assert ask(asked).signer is not None


@needs_gpg
@pytest.mark.parametrize(
    "beside",
    [Served(b"<html>not found</html>"), Served(status=403), Served(b"x" * (1 << 20)), Served(b"")],
    ids=["a web page", "denied", "endless", "empty"],
)
def test_what_is_no_signature_does_not_hide_the_one_that_is(server: Server, keys: Keys, ring: Path, beside: Served) -> None:
    server.serve("/SUMS.gpg", beside)
    server.serve("/SUMS.sig", Served(keys.detached(LIST, GOOD)))
    assert ask(wanted(server, ring)).signer is not None


@needs_gpg
def test_a_subkey_s_signature_counts(server: Server, keys: Keys, tmp_path: Path) -> None:
    server.serve("/SUMS.gpg", Served(keys.detached(LIST, SUBKEY)))
    assert ask(wanted(server, keys.keyring(tmp_path / "ring.asc", SUBKEY, armored=True))).signer is not None


@needs_gpg
def test_an_unsigned_list_is_refused_unless_the_configuration_lets_it_pass(server: Server, ring: Path) -> None:
    with pytest.raises(SignatureRefused, match="is not signed") as refused:
        ask(wanted(server, ring))
    assert "require_signature = false" in (refused.value.hint or "")
    asked = replace(wanted(server, ring), require_signature=False)
    assert ask(asked).signer is None
    assert events(asked)[0][1].endswith(", unsigned")


@needs_gpg
def test_a_source_that_cannot_be_asked_for_a_signature_is_no_unsigned_list(server: Server, ring: Path) -> None:
    server.serve("/SUMS.gpg", Served(status=503))
    with pytest.raises(SourceUnavailable):
        ask(replace(wanted(server, ring), require_signature=False))


@needs_gpg
@pytest.mark.parametrize("require", [True, False])
def test_a_bad_signature_is_refused_whatever_is_required(server: Server, keys: Keys, ring: Path, *, require: bool) -> None:
    expired = keys.detached(LIST, EXPIRED, options=("--faked-system-time", LONG_AGO))
    both = keys.keyring(ring.with_name("both.gpg"), GOOD, EXPIRED)
    for signature, why in (
        (keys.detached(LIST, OTHER), "in none of the keyrings"),
        (keys.detached(LIST + b"\n", GOOD), "of other bytes"),
        (expired, "key has expired"),
        (keys.detached(LIST, GOOD)[:50], "cannot be read"),
    ):
        server.serve("/SUMS.gpg", Served(signature))
        with pytest.raises(SignatureRefused, match=why):
            ask(replace(wanted(server, both), require_signature=require))


@needs_gpg
def test_a_list_that_was_altered_after_it_was_signed_is_refused(server: Server, keys: Keys, ring: Path) -> None:
    server.serve("/SUMS.gpg", Served(keys.detached(LIST, GOOD)))
    server.serve("/SUMS", Served(LIST.replace(DIGEST.hex.encode(), OLD.hex.encode())))
    with pytest.raises(SignatureRefused, match="of other bytes"):
        ask(wanted(server, ring))
    server.serve("/SUMS", Served(keys.inline(LIST, GOOD).replace(DIGEST.hex.encode(), OLD.hex.encode())))
    with pytest.raises(SignatureRefused, match="of other bytes"):
        ask(wanted(server, ring))


@needs_gpg
def test_a_signed_list_of_other_images_says_nothing_of_this_one(server: Server, keys: Keys, ring: Path) -> None:
    other = f"{OLD.hex}  ubuntu.img\n".encode()
    server.serve("/SUMS", Served(other))
    server.serve("/SUMS.gpg", Served(keys.detached(other, GOOD)))
    with pytest.raises(InvalidDigest, match=r"does not list 'debian\.qcow2'"):
        ask(wanted(server, ring))


@needs_gpg
@pytest.mark.parametrize("stale", ["/SUMS", "/SUMS.gpg"])
def test_a_list_and_a_signature_of_different_days_are_asked_for_again_past_caches(
    server: Server, keys: Keys, ring: Path, stale: str
) -> None:
    served = {"/SUMS": (OLD_LIST, LIST), "/SUMS.gpg": (keys.detached(OLD_LIST, GOOD), keys.detached(LIST, GOOD))}
    for path, (old, new) in served.items():
        server.serve(path, Served(old, past_caches=Served(new)) if path == stale else Served(new))
    assert DIGEST == ask(wanted(server, ring)).digest
    assert [1, 1] == [
        sum(1 for request in server.requests if request.path == path and "cache-control" in request.headers) for path in served
    ]


@needs_gpg
def test_a_signature_is_named_and_nobody_s_key_is_trusted(server: Server, keys: Keys) -> None:
    server.serve("/SUMS.gpg", Served(keys.detached(LIST, GOOD)))
    with pytest.raises(ConfigError, match="no keyring says whose signature") as refused:
        ask(wanted(server, signature="/SUMS.gpg"))
    assert "[checksums]" in (refused.value.hint or "")


# ------------------------------------------------------------------------------------------------------------------ once more


def test_a_stale_list_is_asked_again_past_caches(server: Server) -> None:
    server.serve("/SUMS", Served(OLD_LIST, past_caches=Served(LIST)))
    asked = wanted(server)
    before = ask(asked)
    assert (OLD, DIGEST) == (before.digest, ask_again(asked, before, mismatch(OLD)).digest)
    assert "checksum-list-stale" == events(asked)[-1][0]
    assert str(OLD) in events(asked)[-1][1]
    assert str(DIGEST) in events(asked)[-1][1]


def test_of_a_list_that_says_the_same_the_image_is_what_is_stale(server: Server) -> None:
    asked = wanted(server)
    before = ask(asked)
    with pytest.raises(DigestMismatch, match="so the image is what is stale or wrong") as refused:
        ask_again(asked, before, mismatch())
    assert (str(DIGEST), str(OLD)) == (refused.value.expected, refused.value.actual)
    assert server.url("/SUMS") in refused.value.message
    assert [None, "no-cache"] == [request.headers.get("cache-control") for request in server.requests]


def test_of_a_list_that_comes_no_more_the_mismatch_is_told(server: Server) -> None:
    asked = wanted(server)
    before = ask(asked)
    server.withdraw("/SUMS")
    with pytest.raises(DigestMismatch, match=r"cannot be asked again past caches .*404"):
        ask_again(asked, before, mismatch())


def test_a_digest_that_the_source_promised_is_not_the_list_s_affair(server: Server) -> None:
    asked = wanted(server)
    before, promised = ask(asked), mismatch(Digest("md5", "0" * 32))
    with pytest.raises(DigestMismatch) as refused:
        ask_again(asked, before, promised)
    assert promised is refused.value
    assert 1 == len(server.requests)


@needs_gpg
def test_a_newer_list_must_be_signed_too(server: Server, keys: Keys, ring: Path) -> None:
    server.serve("/SUMS", Served(OLD_LIST, past_caches=Served(LIST)))
    server.serve("/SUMS.gpg", Served(keys.detached(OLD_LIST, GOOD)))
    asked = wanted(server, ring)
    before = ask(asked)
    with pytest.raises(SignatureRefused, match="of other bytes"):
        ask_again(asked, before, mismatch(OLD))


# ----------------------------------------------------------------------------------------------------------- what callers give


def test_what_a_caller_gives_is_a_digest_or_a_list_or_nothing(tmp_path: Path) -> None:
    text = f'[caches.base]\nkind = "base"\npath = "{tmp_path}"\n[checksums]\nkeyrings = ["/k.gpg"]\nrequire_signature = false\n'
    config, ref = parse_config(text, origin=tmp_path / "underlay.toml"), parse_ref("https://h/debian.qcow2")

    def given(checksum: str | Digest | None, signature: str | None = None) -> Digest | ChecksumList | None:
        return checksumlist.expected(
            ref, checksum, signature, config=config, sources=lambda _: open_source("file", {}), observer=Heard()
        )

    assert [None, DIGEST, DIGEST] == [given(None), given(DIGEST), given(str(DIGEST))]
    found = given("https://h/SUMS", "https://h/SUMS.gpg")
    assert isinstance(found, ChecksumList)
    assert ("https://h/SUMS", "https://h/SUMS.gpg", ref) == (str(found.at), str(found.signature), found.of)
    assert ((Path("/k.gpg"),), False) == (found.keyrings, found.require_signature)
    for checksum in (None, str(DIGEST)):
        with pytest.raises(InvalidDigest, match="a signature is of a list"):
            given(checksum, "https://h/SUMS.gpg")
    with pytest.raises(InvalidRef):
        given("https://", None)
    with pytest.raises(InvalidDigest):
        given("nonsense")
