"""``underlay fetch``."""

import hashlib
import os
from pathlib import Path

import pytest

from children import NOBODY
from machine import MIB, Machine
from signing import GOOD, OTHER, Keys
from underlay.errors import SourceRefused
from underlay.testing.httpserver import Served, serving

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


def test_a_fetched_image_is_told_with_where_it_is(machine: Machine) -> None:
    ref = machine.raw_image()

    ended = machine.call("fetch", ref)

    (image,) = machine.host().images()[0]
    first, second = ended.out.splitlines()
    assert 0 == ended.status
    assert first.startswith(f"fetched {ref}: ")
    assert second.startswith(f"{image.path} (raw, ")
    assert second.endswith(" 16.0 MiB virtual)")


def test_a_fetched_image_is_told_to_programs_whole(machine: Machine) -> None:
    ref = machine.raw_image()

    ended = machine.call("fetch", ref, "--json")

    (image,) = machine.host().images()[0]
    told = ended.json
    assert {"image", "reason"} == told.keys()
    assert "fetched" == told["reason"]["code"]
    assert (image.name, str(image.path), str(machine.base), ref, "raw", 16 * MIB, True) == tuple(
        told["image"][key] for key in ("name", "path", "cache", "ref", "format", "virtual_size", "recorded")
    )


def test_a_second_fetch_transfers_nothing_and_says_so(machine: Machine) -> None:
    with serving({"/a.img": Served(CONTENT, etag='"1"')}) as server:
        url = server.url("/a.img")

        reasons = [machine.call("fetch", url, "--json").json["reason"]["code"] for _ in range(2)]

        assert 1 == server.bodies("/a.img")
    assert ["fetched", "hit"] == reasons
    assert machine.call("fetch", url).out.startswith(f"hit {url}: ")


def test_the_digest_is_verified_and_on_a_hit_compared(machine: Machine) -> None:
    right, wrong = f"sha512:{hashlib.sha512(CONTENT).hexdigest()}", f"sha512:{128 * '0'}"
    with serving({"/a.img": Served(CONTENT, etag='"1"')}) as server:
        url = server.url("/a.img")

        refused = machine.call("fetch", url, "--checksum", wrong)
        assert ([], []) == machine.host().images()
        statuses = [machine.call("fetch", url, "--checksum", digest).status for digest in (right, right.upper(), wrong)]

    assert (30, "") == (refused.status, refused.out)
    assert right in refused.err.splitlines()[-1]
    assert wrong in refused.err.splitlines()[-1]
    assert [0, 0, 30] == statuses


def test_another_cache_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    machine = Machine.make(tmp_path, extra=f'[caches.second]\nkind = "masters"\npath = "{tmp_path}/second"\n')

    told = machine.call("fetch", machine.raw_image(), "--cache", "second", "--json").json

    assert str(tmp_path / "second") == told["image"]["cache"]


def test_credentials_are_sent_and_never_printed(machine: Machine) -> None:
    with serving({"/a.img": Served(CONTENT, etag='"1"', credentials="user:secret")}) as server:
        url = server.url("/a.img", credentials="user:secret")

        outputs = [
            machine.call("-vv", "fetch", url),
            machine.call("-vv", "fetch", url, "--json"),
            machine.call("list", "--wide"),
        ]
        outputs.append(machine.call("fetch", server.url("/a.img", credentials="user:another-secret")))

    assert [0, 0, 0] == [ended.status for ended in outputs[:3]]
    assert all("secret" not in ended.out + ended.err for ended in outputs)
    assert all(
        b"secret" not in path.read_bytes() for path in machine.base.rglob("*") if path.is_file() and path.stat().st_size < MIB
    )


@pytest.mark.component("root", "ramfs")
def test_of_an_image_that_cannot_be_recorded_no_credentials_are_printed_either(tmp_path: Path, mounted: object) -> None:
    assert callable(mounted)
    machine = Machine.make(tmp_path)
    ramfs = mounted("ramfs")
    machine.config.write_text(machine.config.read_text().replace(f'"{machine.base}"', f'"{ramfs}"'))
    with serving({"/a.img": Served(CONTENT, etag='"1"', credentials="user:secret")}) as server:
        ended = machine.call("fetch", server.url("/a.img", credentials="user:secret"))

    assert ended.out.startswith(f"fetched {server.url('/a.img')}: ")
    assert "secret" not in ended.out + ended.err


@pytest.mark.parametrize(
    ("served", "status", "code"),
    [
        (Served(status=404), 20, "image-not-found"),
        (Served(status=401), 21, "not-authorized"),
        (Served(status=503), 22, "source-unavailable"),
        (Served(CONTENT, cut_after=MIB // 2), 23, "body-truncated"),
        (Served(CONTENT, head_length=100), 24, "body-too-long"),
        (Served(CONTENT, etag='"1"', for_get=Served(CONTENT, etag='"2"')), 25, "source-changed"),
        (Served(CONTENT, encoding="gzip"), 26, "source-refused"),
        (Served(b""), 31, "unsafe-image"),
    ],
)
def test_what_a_server_may_do_wrong_is_told_as_what_it_is(machine: Machine, served: Served, status: int, code: str) -> None:
    with serving({"/a.img": served}) as server:
        ended = machine.call("fetch", server.url("/a.img"), "--json")

    assert (status, code) == (ended.status, ended.error["code"]), ended.error
    assert ([], []) == machine.host().images()
    assert [] == list((machine.base / ".underlay" / "tmp").iterdir())


# ------------------------------------------------------------------------------------------------------- lists of checksums

NEWER = CONTENT[::-1]


def sums(content: bytes, name: str = "a.img") -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n{'0' * 64}  b{name}\n".encode()


def test_a_published_list_gives_the_digest(machine: Machine) -> None:
    with serving({"/a.img": Served(CONTENT, etag='"1"'), "/SHA256SUMS": Served(sums(CONTENT))}) as server:
        url, listed = server.url("/a.img"), server.url("/SHA256SUMS")

        fetched, hit = (machine.call("-v", "fetch", url, "--checksum", listed) for _ in range(2))

        assert (1, 1, 2) == (server.bodies("/a.img"), server.count("HEAD", "/a.img"), server.bodies("/SHA256SUMS"))
    assert [0, 0] == [fetched.status, hit.status]
    assert f"{listed} lists sha256:{hashlib.sha256(CONTENT).hexdigest()}, unsigned" in fetched.err
    assert hit.out.startswith(f"hit {url}: ")


def test_an_image_of_another_digest_is_refused_and_the_list_has_been_asked_past_caches(machine: Machine) -> None:
    with serving({"/a.img": Served(NEWER), "/SUMS": Served(sums(CONTENT))}) as server:
        ended = machine.call("fetch", server.url("/a.img"), "--checksum", server.url("/SUMS"), "--json")

        assert (1, 2) == (server.bodies("/a.img"), server.bodies("/SUMS"))
        assert [None, "no-cache"] == [one.headers.get("cache-control") for one in server.requests if one.path == "/SUMS"]
    assert (30, "digest-mismatch") == (ended.status, ended.error["code"])
    assert "so the image is what is stale or wrong" in (ended.error["message"] or "")
    assert ([], []) == machine.host().images()


def test_a_stale_list_is_told_and_the_image_is_fetched_by_the_newer_one(machine: Machine) -> None:
    stale = Served(sums(CONTENT), past_caches=Served(sums(NEWER)))
    with serving({"/a.img": Served(NEWER), "/SUMS": stale}) as server:
        ended = machine.call("-v", "fetch", server.url("/a.img"), "--checksum", server.url("/SUMS"))

        assert 2 == server.bodies("/a.img")
    assert 0 == ended.status
    assert f"{server.url('/SUMS')} had been stale" in ended.err
    ((image,), _) = machine.host().images()
    assert image.record is not None
    assert f"sha256:{hashlib.sha256(NEWER).hexdigest()}" in image.record.digests


def test_an_image_that_neither_list_means_is_refused(machine: Machine) -> None:
    stale = Served(sums(CONTENT), past_caches=Served(sums(b"another")))
    with serving({"/a.img": Served(NEWER), "/SUMS": stale}) as server:
        ended = machine.call("fetch", server.url("/a.img"), "--checksum", server.url("/SUMS"), "--json")
    assert 30 == ended.status
    assert hashlib.sha256(b"another").hexdigest() in (ended.error["message"] or "")
    assert ([], []) == machine.host().images()


def test_a_changed_image_and_its_list_are_fetched_anew(machine: Machine) -> None:
    with serving({"/a.img": Served(CONTENT, etag='"1"'), "/SUMS": Served(sums(CONTENT))}) as server:
        arguments = ("fetch", server.url("/a.img"), "--checksum", server.url("/SUMS"), "--json")
        before = machine.call(*arguments).json["image"]["name"]
        server.serve("/a.img", Served(NEWER, etag='"2"'))
        server.serve("/SUMS", Served(sums(NEWER)))
        after = machine.call(*arguments).json

    assert "fetched" == after["reason"]["code"]  # although the source was asked a moment ago
    assert before != after["image"]["name"]


def test_a_delivery_takes_a_list_too(tmp_path: Path) -> None:
    (tmp_path / "masters").mkdir()
    machine = Machine.make(tmp_path, extra=f'[caches.masters]\nkind = "masters"\npath = "{tmp_path}/masters"\n')
    stale = Served(sums(CONTENT), past_caches=Served(sums(NEWER)))
    with serving({"/a.img": Served(NEWER), "/SUMS": stale, "/OTHER": Served(sums(CONTENT, "b.img"))}) as server:
        place = tmp_path / "node.img"
        refused = machine.call("fetch", server.url("/a.img"), "--checksum", server.url("/OTHER"), "--to", place)
        assert (12, False) == (refused.status, place.exists())
        ended = machine.call("fetch", server.url("/a.img"), "--checksum", server.url("/SUMS"), "--to", place)
    assert (0, NEWER) == (ended.status, place.read_bytes())


def test_a_list_may_be_a_file(machine: Machine) -> None:
    ref = machine.raw_image("a.img")
    (machine.root / "SUMS").write_bytes(sums((machine.root / "a.img").read_bytes()))
    assert 0 == machine.call("fetch", ref, "--checksum", f"file://{machine.root}/SUMS").status
    (machine.root / "SUMS").write_bytes(sums(b"another"))
    ended = machine.call("fetch", ref, "--checksum", f"file://{machine.root}/SUMS", "--json")
    assert "digest-mismatch" == ended.error["code"]


def test_nothing_is_fetched_when_the_list_does_not_answer(machine: Machine) -> None:
    served = {"/a.img": Served(CONTENT), "/html": Served(b"<html>"), "/other": Served(sums(CONTENT, "xa.img"))}
    with serving(served) as server:
        statuses = [
            machine.call("fetch", server.url("/a.img"), "--checksum", server.url(path)).status
            for path in ("/none", "/html", "/other")
        ]
        assert 0 == server.bodies("/a.img")
    assert [20, 12, 12] == statuses


def test_a_signature_without_a_list_is_refused(machine: Machine) -> None:
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    for checksum in ((), ("--checksum", digest)):
        ended = machine.call("fetch", machine.raw_image(), *checksum, "--signature", "https://host/SUMS.gpg", "--json")
        assert "invalid-digest" == ended.error["code"]


@pytest.mark.component("gpg", "gpgv")
def test_with_keyrings_a_list_must_be_signed_by_their_keys(tmp_path: Path, keys: Keys) -> None:
    ring, listed = keys.keyring(tmp_path / "example.asc", GOOD, armored=True), sums(CONTENT)
    machine = Machine.make(tmp_path, extra=f'[checksums]\nkeyrings = ["{ring}"]\n')
    with serving({"/a.img": Served(CONTENT, etag='"1"'), "/SUMS": Served(listed)}) as server:
        arguments = ("-v", "fetch", server.url("/a.img"), "--checksum", server.url("/SUMS"))

        unsigned = machine.call(*arguments)
        server.serve("/SUMS.sign", Served(keys.detached(listed, OTHER)))
        unknown = machine.call(*arguments)
        assert 0 == server.bodies("/a.img")
        server.serve("/SUMS.sign", Served(keys.detached(listed, GOOD)))
        signed = machine.call(*arguments)
        server.serve("/elsewhere", Served(keys.detached(listed + b"#", GOOD)))
        elsewhere = machine.call(*arguments, "--signature", server.url("/elsewhere"), "--json")

    assert [34, 34, 0, 34] == [unsigned.status, unknown.status, signed.status, elsewhere.status]
    assert "is not signed" in unsigned.err
    assert keys.fingerprints(OTHER)[0] in unknown.err
    assert f"signed by {GOOD} ({keys.fingerprints(GOOD)[0]})" in signed.err
    assert "signature-refused" == elsewhere.error["code"]


@pytest.mark.component("gpg", "gpgv")
def test_a_digest_that_is_given_needs_no_signature(tmp_path: Path, keys: Keys) -> None:
    machine = Machine.make(tmp_path, extra=f'[checksums]\nkeyrings = ["{keys.keyring(tmp_path / "ring.gpg", GOOD)}"]\n')
    with serving({"/a.img": Served(CONTENT)}) as server:
        digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        assert 0 == machine.call("fetch", server.url("/a.img"), "--checksum", digest).status


# ------------------------------------------------------------------------------------------------------- files of this host


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ref of a file that the configuration does not allow."""
    file = tmp_path_factory.mktemp("elsewhere") / "image.raw"
    file.write_bytes(CONTENT)
    return f"file://{file}"


def test_who_can_read_a_file_may_have_it_fetched_and_a_service_may_not(machine: Machine, elsewhere: str) -> None:
    with pytest.raises(SourceRefused):
        machine.host().ensure(elsewhere)
    assert 0 == machine.call("fetch", elsewhere).status
    assert 1 == len(machine.host().images()[0])


def test_a_command_keeps_to_the_allowed_paths_where_the_configuration_says_so(machine: Machine, elsewhere: str) -> None:
    allowed = machine.raw_image()
    machine.config.write_text(machine.config.read_text().replace("[sources.file]", "[sources.file]\ncommand_line = false"))
    assert (26, 0) == (machine.call("fetch", elsewhere).status, machine.call("fetch", allowed).status)


@pytest.mark.component("root")
def test_a_command_reads_no_file_that_its_user_may_not_read(open_directory: Path, tmp_path: Path) -> None:
    machine = Machine.make(open_directory)
    for path in (machine.base, machine.instances):
        os.chown(path, NOBODY, NOBODY)
    secret, open_to_all = open_directory / "secret", open_directory / "open"
    for file, mode in ((secret, 0o600), (open_to_all, 0o644)):
        file.write_bytes(CONTENT)
        file.chmod(mode)
    refused = machine.run("fetch", f"file://{secret}", "--json", user=NOBODY)
    assert (21, "not-authorized") == (refused.status, refused.error["code"])
    assert 0 == machine.run("fetch", f"file://{open_to_all}", user=NOBODY).status
