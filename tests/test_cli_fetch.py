"""``underlay fetch``."""

import hashlib
from pathlib import Path

import pytest

from machine import MIB, Machine
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
