"""Masters in each form, of each freshness, and of sources that want no copy kept; seen from a host, over a real web server."""

import os
import stat
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from machine import MIB, Machine
from underlay.contracts import BackendTraits
from underlay.delivery import Delivered
from underlay.errors import (
    BodyTruncated,
    CacheMissing,
    DigestMismatch,
    FormatMismatch,
    ImageConflict,
    ImageNotFound,
    ImageRefused,
    InvalidForm,
    InvalidRef,
    NotAnImage,
    NotAuthorized,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    UnknownScheme,
    UnsafeImage,
)
from underlay.host import Host
from underlay.model import Damage, Event, Level
from underlay.plan import Report
from underlay.store import quarantine
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Served, Server, redirect, serving

LONG_AGO = datetime(2024, 5, 17, 12, 30, 45, tzinfo=UTC)
NO_STORE = {"Cache-Control": "max-age=60, No-Store"}
NEEDS_RAW = BackendTraits(name="flat", needs_raw=True, overlays=False, disk_format="raw")
PATH = "/image"


@dataclass(frozen=True, slots=True)
class Site:
    """A host with one cache of masters and one base cache, a web server, and a node that wants an image."""

    machine: Machine
    server: Server

    @property
    def masters(self) -> Path:
        return self.machine.root / "masters"

    @property
    def node(self) -> Path:
        return self.machine.root / "node/disk"

    @property
    def url(self) -> str:
        return self.server.url(PATH)

    def host(self, *, observer: Recorder | None = None, revalidate_after: str = "5min", more: str = "", **options: Any) -> Host:
        """A host. Options are of the cache of masters."""
        lines = "".join(f"{key} = {_toml(value)}\n" for key, value in options.items())
        extra = (
            f'[caches.masters]\nkind = "masters"\npath = "{self.masters}"\n{lines}'
            f'[sources.http]\nrevalidate_after = "{revalidate_after}"\n{more}\n'
        )
        config = self.machine.config.read_text().partition("[caches.masters]")[0] + extra
        self.machine.config.write_text(config)
        return self.machine.host(observer)

    def files(self) -> list[str]:
        """What stands in the cache of masters, without what is ours alone."""
        return sorted(name for name in os.listdir(self.masters) if name != ".underlay")

    def asked(self) -> tuple[int, int]:
        """How often the server was asked by HEAD, and how often it gave content."""
        return self.server.count("HEAD", PATH), self.server.bodies(PATH)

    def left(self) -> list[str]:
        """What an ingest may leave and must not, once it has ended."""
        with suppress(FileNotFoundError):
            return os.listdir(self.masters / ".underlay/tmp")
        return []

    def qcow2(self, *, etag: str | None = '"1"', **fields: Any) -> Path:
        """Serve a qcow2 image that boots; its file."""
        self.machine.qcow2_image(size=4 * MIB)
        path = self.machine.root / "image.qcow2"
        self.server.serve(PATH, Served(path, etag=etag, **fields))
        return path

    def raw(self, *, etag: str | None = '"1"', **fields: Any) -> Path:
        """Serve a raw image that boots; its file."""
        self.machine.raw_image(size=4 * MIB)
        path = self.machine.root / "image.raw"
        self.server.serve(PATH, Served(path, etag=etag, **fields))
        return path


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for name in ("masters", "node"):
        (tmp_path / name).mkdir()
    with serving({}) as server:
        yield Site(Machine.make(tmp_path), server)


def how(delivered: Delivered) -> tuple[str, str]:
    assert delivered.came is not None
    return delivered.came.code, delivered.reason.code


def same_disk(served: Path, raw: Path) -> bool:
    """Whether a raw file shows a guest what a served image shows."""
    argv = ["qemu-img", "compare", "-f", served.suffix[1:], "-F", "raw", os.fspath(served), os.fspath(raw)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def evict(host: Host, text: str) -> Report:
    return host.apply(host.plan_evict(text, instances=()))


# ----------------------------------------------------------------------------------------- one transfer, and both of its forms


@pytest.mark.component("qemu-img")
def test_the_raw_form_is_made_from_the_one_as_served_without_a_second_transfer(site: Site) -> None:
    served, host = site.qcow2(), site.host()
    kept = host.fetch(site.url, cache="masters")
    asked = site.asked()
    raw = host.fetch(site.url, cache="masters", raw=True)
    again = host.fetch(site.url, cache="masters", raw=True)
    assert ["fetched", "made-raw", "hit"] == [one.reason.code for one in (kept, raw, again)]
    assert ("qcow2", "raw", "qcow2") == (kept.image.format, raw.image.format, raw.image.served_format)
    assert same_disk(served, raw.image.path)
    assert served.read_bytes() == kept.image.path.read_bytes()
    assert (1, 1) == asked == site.asked()
    assert [kept.image.name, f"{kept.image.name}.converted"] == site.files()
    assert [] == site.left()


@pytest.mark.component("qemu-img")
def test_both_forms_are_delivered_from_one_transfer(site: Site) -> None:
    served, host = site.qcow2(), site.host()
    as_served, raw = site.node.with_name("as-served"), site.node.with_name("raw")
    assert ("fetched", "linked") == how(host.deliver(site.url, as_served))
    assert ("made-raw", "linked") == how(host.deliver(site.url, raw, raw=True))
    assert served.read_bytes() == as_served.read_bytes()
    assert same_disk(served, raw)
    assert (1, 1) == site.asked()


@pytest.mark.component("qemu-img")
def test_what_was_recorded_of_the_image_as_served_holds_for_the_form_that_is_made_from_it(site: Site) -> None:
    site.qcow2()
    host = site.host()
    kept, made = host.fetch(site.url, cache="masters").image, host.fetch(site.url, cache="masters", raw=True).image
    assert kept.record is not None
    assert made.record is not None
    assert kept.record.digests == made.record.digests
    assert (kept.record.version_id, "qcow2", False) == (
        made.record.version_id,
        made.record.served_format,
        made.record.as_served,
    )
    assert "hit" == host.fetch(site.url, cache="masters", raw=True, checksum=kept.record.digests[0]).reason.code


@pytest.mark.component("qemu-img")
def test_in_a_base_cache_a_backend_that_needs_raw_has_it_made_from_what_is_kept(site: Site) -> None:
    served, host = site.qcow2(), site.host()
    answers = [host.fetch(site.url, cache="base", traits=traits) for traits in (None, NEEDS_RAW, NEEDS_RAW, None)]
    assert ["fetched", "made-raw", "hit", "hit"] == [answer.reason.code for answer in answers]
    assert ["qcow2", "raw", "raw", "qcow2"] == [answer.image.format for answer in answers]
    assert same_disk(served, answers[1].image.path)
    assert (1, 1) == site.asked()


def test_an_image_that_comes_raw_is_one_file_whichever_form_is_asked_for_first(site: Site) -> None:
    for first in (True, False):
        site.raw()
        host = site.host()
        answers = [host.fetch(site.url, cache="masters", raw=raw) for raw in (first, not first, None)]
        assert ["fetched", "hit", "hit"] == [answer.reason.code for answer in answers]
        assert 1 == len({answer.image.path for answer in answers}) == len(site.files())
        assert [answers[0].image.path] == list(evict(host, site.url).removed)
    assert 2 == site.server.bodies(PATH)


@pytest.mark.component("qemu-img")
def test_of_an_image_that_was_kept_raw_only_the_bytes_as_served_are_transferred_again(site: Site) -> None:
    served, host = site.qcow2(), site.host()
    answers = [host.fetch(site.url, cache="masters", raw=raw) for raw in (True, None, False)]
    assert ["fetched", "hit", "fetched"] == [answer.reason.code for answer in answers]
    assert ["raw", "raw", "qcow2"] == [answer.image.format for answer in answers]
    assert served.read_bytes() == answers[2].image.path.read_bytes()
    assert 2 == site.server.bodies(PATH)


@pytest.mark.component("qemu-img")
def test_a_raw_form_that_has_gone_is_made_again(site: Site) -> None:
    site.qcow2()
    host = site.host()
    host.fetch(site.url, cache="masters")
    raw = host.fetch(site.url, cache="masters", raw=True).image
    assert [raw.path] == list(evict(host, os.fspath(raw.path)).removed)
    assert "made-raw" == host.fetch(site.url, cache="masters", raw=True).reason.code
    assert 1 == site.server.bodies(PATH)


@pytest.mark.component("qemu-img")
def test_of_many_who_want_the_raw_form_at_once_one_makes_it(site: Site) -> None:
    site.qcow2()
    host = site.host()
    host.fetch(site.url, cache="masters")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: host.fetch(site.url, cache="masters", raw=True), range(8)))
    assert ["hit"] * 7 + ["made-raw"] == sorted(answer.reason.code for answer in answers)
    assert {"raw"} == {answer.image.format for answer in answers}
    assert 1 == site.server.bodies(PATH)


class OnEvent(Recorder):
    """Does something at the first event of a code."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code
        self.then: Any = None

    def event(self, event: Event) -> None:
        if event.code == self.code and self.then is not None:
            act, self.then = self.then, None
            act()
        super().event(event)


@pytest.mark.component("qemu-img")
def test_an_image_as_served_that_goes_before_it_could_be_held_is_transferred_again(site: Site) -> None:
    served, observer = site.qcow2(), OnEvent("staged")
    host = site.host(observer=observer)
    kept = host.fetch(site.url, cache="masters").image
    observer.then = kept.path.unlink
    raw = host.fetch(site.url, cache="masters", raw=True)
    assert observer.then is None
    assert ("fetched", "raw") == (raw.reason.code, raw.image.format)
    assert same_disk(served, raw.image.path)
    assert [] == site.left()


@pytest.mark.component("qemu-img")
def test_raw_is_not_made_from_an_image_as_served_that_has_rotted(site: Site) -> None:
    """Its raw form would have a digest of its own, which vouches for the rot."""
    served, observer = site.qcow2(), Recorder()
    host = site.host(observer=observer)
    kept = host.fetch(site.url, cache="masters").image
    before = kept.path.stat()
    with kept.path.open("r+b") as file:
        file.seek(before.st_size - 70_000)
        file.write(b"rot")
    os.utime(kept.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that fails tells nobody
    raw = host.fetch(site.url, cache="masters", raw=True)
    assert ("fetched", "raw") == (raw.reason.code, raw.image.format)
    assert "download-damaged" in observer.codes
    assert same_disk(served, raw.image.path)
    assert 2 == site.server.bodies(PATH)
    assert [] == site.left()


@pytest.mark.component("qemu-img")
def test_an_image_as_served_that_a_scrub_finds_damaged_meanwhile_is_transferred_again(site: Site) -> None:
    served, observer = site.qcow2(), OnEvent("staged")
    host = site.host(observer=observer)
    kept = host.fetch(site.url, cache="masters").image
    inode, (store,) = kept.path.stat().st_ino, host.parts.stores("masters")
    damage = Damage(code="content-differs", detail="its bytes differ", found_at=datetime.now(UTC))
    observer.then = lambda: quarantine.put(store, kept.name, inode=inode, damage=damage)
    raw = host.fetch(site.url, cache="masters", raw=True)
    assert observer.then is None
    assert ("fetched", "raw") == (raw.reason.code, raw.image.format)
    assert same_disk(served, raw.image.path)


@pytest.mark.component("qemu-img")
def test_an_image_as_served_that_goes_while_it_is_converted_is_converted_all_the_same(site: Site) -> None:
    served, observer = site.qcow2(), OnEvent("download-durable")
    host = site.host(observer=observer)
    kept = host.fetch(site.url, cache="masters").image
    observer.then = kept.path.unlink
    raw = host.fetch(site.url, cache="masters", raw=True)
    assert observer.then is None
    assert ("made-raw", 1) == (raw.reason.code, site.server.bodies(PATH))
    assert same_disk(served, raw.image.path)


@pytest.mark.component("qemu-img")
def test_a_newer_version_is_not_made_from_the_older_one(site: Site) -> None:
    site.qcow2()
    host = site.host(revalidate_after="0s")
    host.fetch(site.url, cache="masters")
    newer = site.raw(etag='"2"')
    raw = host.fetch(site.url, cache="masters", raw=True)
    assert "fetched" == raw.reason.code
    assert newer.read_bytes() == raw.image.path.read_bytes()


@pytest.mark.component("qemu-img")
def test_what_was_never_inspected_is_neither_converted_nor_taken_for_raw(site: Site) -> None:
    served, host = site.qcow2(), site.host(validation=False)
    kept = host.fetch(site.url, cache="masters").image
    assert (served.read_bytes(), None) == (kept.path.read_bytes(), kept.served_format)
    raw = host.fetch(site.url, cache="masters", raw=True)
    assert ("fetched", "raw", "qcow2") == (raw.reason.code, raw.image.format, raw.image.served_format)
    assert same_disk(served, raw.image.path)
    assert 2 == site.server.bodies(PATH)


def test_a_raw_form_is_inspected_in_a_cache_without_validation_too(site: Site) -> None:
    path = site.machine.root / "backed.qcow2"
    backed = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", os.fspath(path), "1M"]
    subprocess.run(backed, check=True)
    site.server.serve(PATH, Served(path, etag='"1"'))
    host = site.host(validation=False)
    host.fetch(site.url, cache="masters")
    with pytest.raises(UnsafeImage):
        host.fetch(site.url, cache="masters", raw=True)
    assert 1 == len(site.files())


@pytest.mark.component("qemu-img")
def test_where_raw_is_the_rule_and_validation_is_off_nothing_uninspected_is_taken_for_raw(site: Site) -> None:
    served, host = site.qcow2(), site.host(validation=False, force_raw_images=True)
    host.fetch(site.url, cache="masters")
    raw = host.fetch(site.url, cache="masters", raw=True)
    assert same_disk(served, raw.image.path)


# --------------------------------------------------------------------------------------------------------- what it is to be


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("wanted", ["raw", "gpt", "iso", "vmdk", "vhd"])
def test_a_format_that_the_content_has_not_is_refused_at_the_fetch_and_on_a_hit(site: Site, wanted: str) -> None:
    site.qcow2()
    host = site.host()
    for path in (None, site.node):
        with pytest.raises(FormatMismatch):
            ask(host, site, path, disk_format=wanted)
    assert ([], []) == (site.files(), site.left())
    host.fetch(site.url, cache="masters")
    for path in (None, site.node):
        with pytest.raises(FormatMismatch, match=f"asked for as {wanted}, but its content is qcow2"):
            ask(host, site, path, disk_format=wanted)
    assert not site.node.exists()
    assert "hit" == host.fetch(site.url, cache="masters", disk_format="qcow2").reason.code


def ask(host: Host, site: Site, path: Path | None, **want: Any) -> None:
    """Fetch, or deliver to a path."""
    if path is None:
        host.fetch(site.url, cache="masters", **want)
    else:
        host.deliver(site.url, path, **want)


@pytest.mark.component("qemu-img")
def test_the_format_as_served_is_what_counts_of_a_raw_form(site: Site) -> None:
    site.qcow2()
    host = site.host()
    host.fetch(site.url, cache="masters", raw=True, disk_format="qcow2")
    with pytest.raises(FormatMismatch, match="its content is qcow2"):
        host.fetch(site.url, cache="masters", raw=True, disk_format="raw")
    assert "hit" == host.fetch(site.url, cache="masters", raw=True, disk_format="qcow2").reason.code


@pytest.mark.parametrize("wanted", ["raw", "gpt"])
def test_a_raw_disk_is_raw_with_and_without_a_partition_table(site: Site, wanted: str) -> None:
    host = site.host()
    for etag, content in (("1", b"no partition table" * 1000), ("2", site.raw().read_bytes())):
        site.server.serve(PATH, Served(content, etag=f'"{etag}"'))
        for _ in range(2):
            host.fetch(site.url, cache="masters", disk_format=wanted, raw=True)
        evict(host, site.url)


def iso() -> bytes:
    """As much of an ISO 9660 image as tells that it is one (ECMA-119, 8.4)."""
    image = bytearray(64 * 1024)
    image[0x8000:0x8006] = b"\x01CD001"
    image[0x8006] = 1
    image[0x8800:0x8807] = b"\xffCD001\x01"
    return bytes(image)


def test_an_iso_that_is_asked_for_as_raw_is_refused_and_as_iso_delivered_as_it_is(site: Site) -> None:
    site.server.serve(PATH, Served(iso(), etag='"1"'))
    host = site.host()
    with pytest.raises(FormatMismatch):
        host.deliver(site.url, site.node, disk_format="raw")
    delivered = host.deliver(site.url, site.node, disk_format="iso", raw=True)
    assert ("raw", "iso", iso()) == (delivered.image.format, delivered.image.served_format, site.node.read_bytes())
    with pytest.raises(FormatMismatch, match="its content is iso"):
        host.deliver(site.url, site.node, disk_format="raw")


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("label", ["aki", "ari", "ami"])
def test_a_kernel_or_a_ramdisk_may_be_anything_and_is_never_converted(site: Site, label: str) -> None:
    served, host = site.qcow2(), site.host()
    for _ in range(2):
        host.deliver(site.url, site.node, disk_format=label, raw=True)
        assert served.read_bytes() == site.node.read_bytes()
    assert 1 == site.server.bodies(PATH)


@pytest.mark.component("qemu-img")
def test_what_was_fetched_as_a_kernel_is_inspected_before_it_is_a_disk_to_others(site: Site) -> None:
    served, host = site.qcow2(), site.host()
    host.fetch(site.url, cache="masters", disk_format="aki")
    disk = host.fetch(site.url, cache="masters")
    assert ("qcow2", "qcow2") == (disk.image.format, disk.image.served_format)
    assert served.read_bytes() == disk.image.path.read_bytes()


@pytest.mark.component("qemu-img")
def test_what_was_fetched_as_a_kernel_in_raw_form_is_not_the_raw_form_of_a_disk(site: Site) -> None:
    served, host = site.qcow2(), site.host()
    host.fetch(site.url, cache="masters", disk_format="aki", raw=True)
    assert same_disk(served, host.fetch(site.url, cache="masters", raw=True).image.path)


@pytest.mark.component("qemu-img")
def test_a_base_cache_that_keeps_raw_images_does_not_take_a_kernel_for_one(site: Site) -> None:
    text = site.machine.config.read_text()
    site.machine.config.write_text(text.replace("force_raw_images = false", "force_raw_images = true"))
    served, host = site.qcow2(), site.host()
    host.fetch(site.url, cache="base", disk_format="aki")
    with suppress(ImageConflict):  # both would have one name, and neither may be replaced
        assert same_disk(served, host.fetch(site.url, cache="base").image.path)


@pytest.mark.component("qemu-img")
def test_a_disk_that_is_here_as_served_is_a_kernel_as_it_is(site: Site) -> None:
    site.qcow2()
    host = site.host()
    kept = host.fetch(site.url, cache="masters")
    kernel = host.fetch(site.url, cache="masters", disk_format="aki", raw=True)
    assert ("hit", kept.image.path) == (kernel.reason.code, kernel.image.path)
    assert [kept.image.name] == site.files()


@pytest.mark.parametrize("name", ["", "RAW", "luks", "qed", "qcow", "img", "../raw"])
def test_a_format_that_nobody_knows_is_refused_before_anything_is_asked(site: Site, name: str) -> None:
    site.raw()
    host = site.host()
    with pytest.raises(InvalidForm):
        host.fetch(site.url, cache="masters", disk_format=name)
    with pytest.raises(InvalidForm):
        host.deliver(site.url, site.node, disk_format=name)
    assert () == site.server.requests


def test_where_nothing_is_inspected_no_format_is_compared(site: Site) -> None:
    site.raw()
    host = site.host(validation=False)
    for _ in range(2):
        assert None is host.fetch(site.url, cache="masters", disk_format="iso").image.served_format


# ------------------------------------------------------------------------------------------------------------------ freshness


def test_a_server_is_asked_by_the_etag_that_is_known_and_nothing_is_transferred(site: Site) -> None:
    site.raw(last_modified=LONG_AGO)
    host = site.host(revalidate_after="0s")
    assert ["fetched", "revalidated"] == [host.fetch(site.url, cache="masters").reason.code for _ in range(2)]
    asked = site.server.requests[-1]
    assert ("HEAD", 304, '"1"') == (asked.method, asked.status, asked.headers["if-none-match"])
    assert "if-modified-since" not in asked.headers
    assert 1 == site.server.bodies(PATH)


def test_a_server_without_an_etag_is_asked_by_the_date_that_is_known(site: Site) -> None:
    site.raw(etag=None, last_modified=LONG_AGO, chunked=True)
    host = site.host(revalidate_after="0s")
    assert ["fetched", "revalidated"] == [host.fetch(site.url, cache="masters").reason.code for _ in range(2)]
    assert "Fri, 17 May 2024 12:30:45 GMT" == site.server.requests[-1].headers["if-modified-since"]
    assert (304, 1) == (site.server.requests[-1].status, site.server.bodies(PATH))


@pytest.mark.parametrize("date", [None, "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 17 May 2024 12:30:44 GMT"])
def test_a_304_that_names_another_date_or_none_is_not_believed(site: Site, date: str | None) -> None:
    """A server that knows RFC 9110 answers so when older content has taken the place of newer."""
    site.raw(etag=None, last_modified=LONG_AGO, chunked=True)
    host = site.host(revalidate_after="0s")
    host.fetch(site.url, cache="masters")
    not_modified = Served(status=304, headers={} if date is None else {"Last-Modified": date})
    site.server.serve(PATH, [not_modified, Served(b"older", last_modified=LONG_AGO - timedelta(seconds=1))])
    answer = host.fetch(site.url, cache="masters")
    assert ("fetched", b"older") == (answer.reason.code, answer.image.path.read_bytes())
    assert ["HEAD", "HEAD", "GET"] == [request.method for request in site.server.requests[-3:]]
    assert "if-modified-since" not in site.server.requests[-2].headers


@pytest.mark.parametrize("known", ["etag", "date"])
@pytest.mark.parametrize("by", [timedelta(days=-400), timedelta(days=400)])
def test_other_content_is_a_new_master_whatever_its_date(site: Site, by: timedelta, known: str) -> None:
    etag = known == "etag"
    site.server.serve(PATH, Served(b"old", etag='"1"' if etag else None, last_modified=LONG_AGO))
    host = site.host(revalidate_after="0s")
    old = host.deliver(site.url, site.node)
    other = Served(b"other", etag='"2"' if etag else None, last_modified=LONG_AGO + by)
    site.server.serve(PATH, other)
    new = host.deliver(site.url, site.node.with_name("other"))
    assert ("fetched", b"other") == (how(new)[0], new.path.read_bytes())
    assert (b"old", 1) == (site.node.read_bytes(), site.node.stat().st_nlink)
    assert [old.image.name] == site.files()


def test_content_of_another_length_under_the_same_date_is_a_new_master(site: Site) -> None:
    """Whoever builds reproducibly gives every build one date."""
    site.server.serve(PATH, Served(b"old", last_modified=LONG_AGO))
    host = site.host(revalidate_after="0s")
    host.fetch(site.url, cache="masters")
    site.server.serve(PATH, Served(b"longer", last_modified=LONG_AGO))
    assert b"longer" == host.fetch(site.url, cache="masters").image.path.read_bytes()


@pytest.mark.parametrize("modified", [None, datetime.now(UTC) + timedelta(days=400)])
def test_without_a_date_or_with_one_to_come_an_image_is_fresh_for_its_time_and_no_longer(
    site: Site, modified: datetime | None
) -> None:
    site.server.serve(PATH, Served(b"content", last_modified=modified))
    assert ["fetched", "hit"] == [site.host().fetch(site.url, cache="masters").reason.code for _ in range(2)]
    inode = site.masters.joinpath(*site.files()).stat().st_ino
    assert "fetched" == site.host(revalidate_after="0s").fetch(site.url, cache="masters").reason.code
    assert (2, inode) == (site.server.bodies(PATH), site.masters.joinpath(*site.files()).stat().st_ino)


def test_within_its_time_an_image_costs_no_request_and_afterwards_one(site: Site) -> None:
    site.raw()
    host = site.host()
    host.deliver(site.url, site.node)
    for path in (site.node, site.node.with_name("another")):
        host.deliver(site.url, path)
        host.deliver(site.url, path)
    assert (1, 1) == site.asked()
    site.host(revalidate_after="0s").deliver(site.url, site.node)
    assert (2, 1) == site.asked()


def test_an_answer_of_the_server_holds_for_every_form_and_place(site: Site) -> None:
    site.raw()
    site.host().fetch(site.url, cache="masters")
    stale = site.host(revalidate_after="0s")
    assert "revalidated" == stale.fetch(site.url, cache="masters", raw=True).reason.code
    assert "hit" == site.host().deliver(site.url, site.node, raw=False).came.code  # type: ignore[union-attr]
    assert (2, 1) == site.asked()


def test_a_304_that_nobody_asked_for_is_an_error(site: Site) -> None:
    site.server.serve(PATH, Served(status=304))
    with pytest.raises(SourceRefused, match="304"):
        site.host().fetch(site.url, cache="masters")
    assert [] == site.files()


@pytest.mark.component("qemu-img")
def test_a_new_version_takes_the_place_of_each_form_when_that_is_asked_for(site: Site) -> None:
    site.qcow2()
    host = site.host(revalidate_after="0s")
    host.fetch(site.url, cache="masters", raw=True)
    host.fetch(site.url, cache="masters", raw=False)
    newer = site.raw(etag='"2"').read_bytes()
    for raw in (None, True, False):
        assert newer == host.fetch(site.url, cache="masters", raw=raw).image.path.read_bytes()
    assert 3 == site.server.bodies(PATH)


# ------------------------------------------------------------------------------------------------------------ a silent source


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_while_its_source_is_down_a_verified_master_is_delivered_and_that_is_told(site: Site, status: int) -> None:
    observer = Recorder()
    content = site.raw().read_bytes()
    host = site.host(revalidate_after="0s", observer=observer)
    host.fetch(site.url, cache="masters")
    site.server.serve(PATH, Served(status=status))
    assert ("source-unavailable", "linked") == how(host.deliver(site.url, site.node))
    assert content == site.node.read_bytes()
    assert ["source-unavailable"] == [event.code for event in observer.events if event.level is Level.WARNING]


def test_whether_it_is_delivered_then_is_configured(site: Site) -> None:
    site.raw()
    host = site.host(revalidate_after="0s", more="stale_if_error = false")
    host.deliver(site.url, site.node)
    site.server.serve(PATH, Served(status=503))
    with pytest.raises(SourceUnavailable, match="503"):
        host.deliver(site.url, site.node.with_name("other"))
    assert ["disk"] == os.listdir(site.node.parent)
    assert 1 == len(site.files())
    assert "hit" == site.host(more="stale_if_error = false").fetch(site.url, cache="masters").reason.code


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("revalidate_after", ["0s", "5min"])
def test_while_its_source_is_down_the_raw_form_is_made_all_the_same(site: Site, revalidate_after: str) -> None:
    served = site.qcow2()
    host = site.host(revalidate_after=revalidate_after)
    host.fetch(site.url, cache="masters")
    site.server.serve(PATH, Served(status=503))
    came, _ = how(host.deliver(site.url, site.node, raw=True))
    assert ("source-unavailable" if revalidate_after == "0s" else "made-raw") == came
    assert same_disk(served, site.node)


@pytest.mark.component("qemu-img")
def test_while_its_source_is_down_no_other_format_and_no_other_form_is_delivered(site: Site) -> None:
    site.qcow2()
    host = site.host(revalidate_after="0s")
    host.fetch(site.url, cache="masters", raw=True)
    site.server.serve(PATH, Served(status=503))
    for want in ({"disk_format": "raw"}, {"raw": False}):
        with pytest.raises(SourceUnavailable):
            host.deliver(site.url, site.node, **want)
    assert not site.node.exists()


@pytest.mark.parametrize(("status", "error"), [(404, ImageNotFound), (403, NotAuthorized)])
def test_a_source_that_says_no_is_heard_and_the_master_and_the_delivered_stay(
    site: Site, status: int, error: type[SourceError]
) -> None:
    content = site.raw().read_bytes()
    host = site.host(revalidate_after="0s")
    host.deliver(site.url, site.node)
    site.server.serve(PATH, Served(status=status))
    for path in (site.node, site.node.with_name("other")):
        with pytest.raises(error):
            host.deliver(site.url, path)
    assert (content, 2) == (site.node.read_bytes(), site.node.stat().st_nlink)


# ------------------------------------------------------------------------------------------------ a source that wants no copy


def test_what_nobody_may_keep_is_delivered_and_not_kept(site: Site) -> None:
    content = site.raw(headers=NO_STORE).read_bytes()
    host = site.host()
    for number in (1, 2):
        path = site.node.with_name(f"node-{number}")
        assert ("fetched", "linked") == how(host.deliver(site.url, path))
        assert (content, 1) == (path.read_bytes(), path.stat().st_nlink)
        assert ([], []) == (site.files(), site.left())
        assert (number, number) == site.asked()
    assert content == site.node.with_name("node-1").read_bytes()


def test_what_nobody_may_keep_is_asked_for_and_fetched_anew_by_a_fetch_too(site: Site) -> None:
    site.raw(headers=NO_STORE)
    host = site.host()
    fetched = [host.fetch(site.url, cache="masters") for _ in range(3)]
    assert [("fetched", True)] * 3 == [(one.reason.code, one.no_store) for one in fetched]
    assert (3, 3) == site.asked()
    assert fetched[0].image.record is not None
    digest = fetched[0].image.record.digests[0]
    assert "fetched" == host.fetch(site.url, cache="masters", checksum=digest).reason.code


@pytest.mark.parametrize("conditional", [True, False])
def test_a_master_that_nobody_may_keep_any_more_goes_with_its_next_delivery(site: Site, *, conditional: bool) -> None:
    content = site.raw().read_bytes()
    host = site.host(revalidate_after="0s")
    host.deliver(site.url, site.node)
    site.raw(headers=NO_STORE, etag='"1"' if conditional else '"2"')
    other = site.node.with_name("other")
    assert ("fetched", "linked") == how(host.deliver(site.url, other))
    assert [] == site.files()
    assert content == site.node.read_bytes() == other.read_bytes()
    assert 2 == site.server.bodies(PATH)


def test_what_nobody_may_keep_stays_while_it_is_pinned_and_answers_nobody(site: Site) -> None:
    site.raw()
    host = site.host(revalidate_after="0s")
    image = host.fetch(site.url, cache="masters").image
    (lease,) = host.pin(image.name, holder="test")
    site.raw(headers=NO_STORE)
    for number in (2, 3):
        assert "fetched" == how(host.deliver(site.url, site.node))[0]
        assert ([image.name], number) == (site.files(), site.server.bodies(PATH))
    host.release(lease.id)
    host.deliver(site.url, site.node)
    assert [] == site.files()


def test_what_nobody_may_keep_does_not_stand_in_for_a_source_that_is_down(site: Site) -> None:
    site.raw(headers=NO_STORE)
    host = site.host()
    image = host.fetch(site.url, cache="masters").image
    assert [image.name] == site.files()
    site.server.serve(PATH, Served(status=503))
    with pytest.raises(SourceUnavailable):
        host.deliver(site.url, site.node)
    assert not site.node.exists()


def test_what_may_be_kept_again_is_kept(site: Site) -> None:
    site.raw(headers=NO_STORE)
    host = site.host()
    host.deliver(site.url, site.node)
    site.raw()
    assert ["fetched", "hit"] == [how(host.deliver(site.url, site.node))[0] for _ in range(2)]
    assert 1 == len(site.files())


def test_many_at_once_who_want_what_nobody_may_keep_all_have_it(site: Site) -> None:
    content = site.raw(headers=NO_STORE).read_bytes()
    host = site.host()
    paths = [site.node.with_name(f"node-{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: host.deliver(site.url, path), paths))
    assert {content} == {path.read_bytes() for path in paths}
    assert ([], []) == (site.files(), site.left())


def test_a_base_cache_keeps_what_nobody_should_for_the_disks_on_it(site: Site) -> None:
    site.raw(headers=NO_STORE)
    host = site.host()
    host.deliver(site.url, site.node, cache="base")
    image = host.fetch(site.url, cache="base").image
    assert image.path.exists()
    assert 2 == site.server.bodies(PATH)


# ---------------------------------------------------------------------------------------------- names, destinations and faults


def test_one_image_by_several_spellings_of_its_address_is_one_master(site: Site) -> None:
    site.raw()
    host = site.host()
    port = site.server.base.rpartition(":")[2]
    spellings = [
        site.url,
        f"HTTP://127.0.0.1:{port}{PATH}",
        f"{site.url}#part",
        f"{site.url}?X-Amz-Signature=12ab&X-Amz-Expires=60",
        site.server.url(PATH, credentials="tux:secret"),
    ]
    for spelling in spellings:
        host.deliver(spelling, site.node)
    assert [str(uuid.uuid5(uuid.NAMESPACE_URL, site.url))] == site.files()
    assert (1, 1) == site.asked()


def test_a_query_may_say_which_image_is_meant(site: Site) -> None:
    site.raw()
    host = site.host()
    for query in ("?release=12", "?release=13"):
        host.fetch(site.url + query, cache="masters")
    assert 2 == len(site.files())


def test_no_part_of_an_address_is_in_a_name_however_long_it_is(site: Site) -> None:
    long = f"/{'a/' * 400}image"
    site.server.serve(long, Served(b"content", etag='"1"'))
    site.host().deliver(site.server.url(long), site.node)
    assert [str(uuid.uuid5(uuid.NAMESPACE_URL, site.server.url(long)))] == site.files()


@pytest.mark.parametrize("ref", ["nfs://host/image", "cifs://host/image", "ftp://host/image", "no-uuid"])
def test_what_no_source_serves_is_refused_as_what_it_is(site: Site, ref: str) -> None:
    with pytest.raises(UnknownScheme if "://" in ref else InvalidRef):
        site.host().deliver(ref, site.node)


def test_a_server_that_refuses_head_is_no_matter(site: Site) -> None:
    content = site.raw(head_status=405).read_bytes()
    host = site.host(revalidate_after="0s")
    assert "fetched" == how(host.deliver(site.url, site.node))[0]
    assert "revalidated" == how(host.deliver(site.url, site.node))[0]
    assert content == site.node.read_bytes()
    assert len(content) + 1 == site.server.sent(PATH)


def test_a_server_that_announces_no_length_is_no_matter(site: Site) -> None:
    content = site.raw(chunked=True).read_bytes()
    site.host().deliver(site.url, site.node)
    assert content == site.node.read_bytes()


def test_a_link_that_is_signed_for_one_method_is_no_matter(site: Site) -> None:
    content = site.raw(head_status=403).read_bytes()
    site.host().deliver(f"{site.url}?X-Amz-Signature=12ab", site.node)
    assert content == site.node.read_bytes()


@pytest.mark.parametrize(
    ("served", "error"),
    [
        (Served(bytes(MIB), etag='"2"', cut_after=0), BodyTruncated),
        (Served(status=404), ImageNotFound),
        (Served(status=503), SourceUnavailable),
        (Served(b"QFI\xfb" + bytes(4096), etag='"2"'), ImageRefused),
        (Served(b"", etag='"2"'), ImageRefused),
        (redirect("ftp://127.0.0.1/image"), SourceRefused),
    ],
)
def test_a_fetch_that_fails_leaves_the_destination_as_it_was_and_nothing_else(
    site: Site, served: Served, error: type[Exception]
) -> None:
    site.node.write_bytes(b"what was there")
    before = site.node.stat()
    site.server.serve(PATH, served)
    with pytest.raises(error):
        site.host().deliver(site.url, site.node)
    after = site.node.stat()
    assert (before.st_ino, before.st_ctime_ns, b"what was there") == (after.st_ino, after.st_ctime_ns, site.node.read_bytes())
    assert ([], [], ["disk"]) == (site.files(), site.left(), os.listdir(site.node.parent))


def test_a_wrong_checksum_leaves_no_master_and_the_destination_as_it_was(site: Site) -> None:
    site.raw()
    site.node.write_bytes(b"what was there")
    host, wrong = site.host(), f"sha256:{'0' * 64}"
    with pytest.raises(DigestMismatch):
        host.deliver(site.url, site.node, checksum=wrong)
    assert ([], [], b"what was there") == (site.files(), site.left(), site.node.read_bytes())


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5"])
def test_a_wrong_checksum_on_a_hit_delivers_nothing_and_a_right_one_costs_no_transfer(site: Site, algorithm: str) -> None:
    right = subprocess.run([f"{algorithm}sum", site.raw()], capture_output=True, text=True, check=True).stdout.split()[0]
    host = site.host()
    host.fetch(site.url, cache="masters")
    with pytest.raises(DigestMismatch):
        host.deliver(site.url, site.node, checksum=f"{algorithm}:{right[::-1]}")
    assert not site.node.exists()
    assert "hit" == how(host.deliver(site.url, site.node, checksum=f"{algorithm.upper()}:{right.upper()}"))[0]
    assert 1 == site.server.bodies(PATH)


def test_a_master_that_ironic_made_is_fetched_once_more_and_known_from_then_on(site: Site) -> None:
    content = site.raw().read_bytes()
    host = site.host()
    image = host.fetch(site.url, cache="masters").image
    image.path.unlink()
    image.path.write_bytes(content)  # without a record, as Ironic leaves it
    found = [host.fetch(site.url, cache="masters") for _ in range(3)]
    assert ["fetched", "hit", "hit"] == [one.reason.code for one in found]
    assert 2 == site.server.bodies(PATH)


@pytest.mark.parametrize("change", ["length", "time"])
def test_a_master_that_was_changed_on_disk_is_not_delivered_but_fetched_anew(site: Site, change: str) -> None:
    content = site.raw().read_bytes()
    host = site.host()
    earlier = site.node.with_name("earlier")
    image = host.deliver(site.url, earlier).image
    os.truncate(earlier, MIB) if change == "length" else os.utime(earlier)
    assert ("fetched", "linked") == how(host.deliver(site.url, site.node))
    assert content == site.node.read_bytes() == image.path.read_bytes()
    assert not earlier.samefile(image.path)  # who changed it keeps it
    assert ("hit", "delivered") == how(host.deliver(site.url, site.node))


def test_a_directory_that_is_not_there_is_told_before_anything_is_asked(site: Site) -> None:
    site.raw()
    with pytest.raises(CacheMissing):
        site.host().deliver(site.url, site.machine.root / "nowhere/disk")
    assert () == site.server.requests


@pytest.mark.component("root", "tmpfs")
def test_the_first_delivery_to_another_file_system_is_a_copy_and_costs_one_transfer(site: Site, mounted: Any) -> None:
    content = site.raw().read_bytes()
    path = mounted("tmpfs", 32 * MIB) / "disk"
    host = site.host()
    assert [("fetched", "copied"), ("hit", "delivered")] == [how(host.deliver(site.url, path)) for _ in range(2)]
    assert content == path.read_bytes()
    assert (1, 1) == site.asked()


@pytest.mark.component("root", "tmpfs", "leases")
def test_a_master_stays_as_long_as_a_copy_of_it_is_there(site: Site, mounted: Any) -> None:
    site.raw()
    path = mounted("tmpfs", 32 * MIB) / "disk"
    host = site.host(ttl="1s", max_size="1B", keep_recent="0s")
    image = host.deliver(site.url, path).image
    later = datetime.now(UTC) + timedelta(days=1)
    kept = host.apply(host.plan_prune(now=later, instances=(), cache="masters"))
    assert ["copied"] == [verdict.reasons[0].code for verdict in kept.verdicts]
    path.unlink()
    gone = host.apply(host.plan_prune(now=later + timedelta(days=1), instances=(), cache="masters"))
    assert [image.path] == list(gone.removed)


@pytest.mark.component("root", "tmpfs")
def test_what_nobody_may_keep_is_copied_where_no_link_can_be(site: Site, mounted: Any) -> None:
    content = site.raw(headers=NO_STORE).read_bytes()
    path = mounted("tmpfs", 32 * MIB) / "disk"
    host = site.host()
    came, reason = how(host.deliver(site.url, path))
    assert ("fetched", "copied", content, []) == (came, reason, path.read_bytes(), site.files())
    # Fetched again it is another image, unless that was within the same second.
    came, reason = how(host.deliver(site.url, path))
    assert ("fetched", content, []) == (came, path.read_bytes(), site.files())
    assert reason in ("copied", "delivered")
    assert ["disk"] == os.listdir(path.parent)


def test_what_is_delivered_may_be_read_by_all_whatever_the_umask(site: Site) -> None:
    before = os.umask(0o077)
    try:
        site.raw()
        delivered = site.host().deliver(site.url, site.node)
    finally:
        os.umask(before)
    assert 0o644 == stat.S_IMODE(site.node.stat().st_mode) == stat.S_IMODE(delivered.image.path.stat().st_mode)


def test_a_file_is_a_master_of_its_own_and_never_a_link_to_its_source(site: Site) -> None:
    """Writing to a delivered file, or changing its mode, must not change what it came from."""
    ref, source = site.machine.raw_image(size=4 * MIB), site.machine.root / "image.raw"
    delivered = site.host().deliver(ref, site.node)
    assert site.node.samefile(delivered.image.path)
    assert 1 == source.stat().st_nlink


def test_what_stands_in_a_master_s_place_and_is_none_is_told_and_left_alone(site: Site) -> None:
    site.raw()
    host = site.host()
    image = host.fetch(site.url, cache="masters").image
    image.path.unlink()
    image.path.symlink_to("nowhere")
    with pytest.raises(NotAnImage):
        host.deliver(site.url, site.node)
    assert image.path.is_symlink()
    other = site.server.url("/other")
    site.server.serve("/other", Served(b"content", etag='"1"'))
    assert "fetched" == how(host.deliver(other, site.node))[0]


@pytest.mark.component("qemu-img")
def test_the_command_takes_the_form_and_the_format(site: Site) -> None:
    served = site.qcow2()
    site.host()
    kept, raw = site.node.with_name("kept"), site.node.with_name("raw")
    assert "fetched" == site.machine.call("fetch", site.url, "--to", kept, "--as-served", "--json").json["reason"]["code"]
    answer = site.machine.call("fetch", site.url, "--to", raw, "--raw", "--disk-format", "qcow2", "--json").json
    assert ("made-raw", "raw") == (answer["reason"]["code"], answer["image"]["format"])
    assert served.read_bytes() == kept.read_bytes()
    assert same_disk(served, raw)
    refused = site.machine.call("fetch", site.url, "--to", raw, "--disk-format", "raw", "--json")
    assert (FormatMismatch.exit_code, "format-mismatch") == (refused.status, refused.error["code"])
    unknown = site.machine.call("fetch", site.url, "--disk-format", "img", "--json")
    assert (InvalidForm.exit_code, "invalid-form") == (unknown.status, unknown.error["code"])
    assert 1 == site.server.bodies(PATH)


def test_a_wish_that_a_cache_can_never_meet_is_refused(site: Site) -> None:
    text = site.machine.config.read_text()
    site.machine.config.write_text(text.replace("force_raw_images = false", "force_raw_images = true"))
    host = site.host()
    with pytest.raises(InvalidForm, match="raw images only"):
        host.fetch(site.url, cache="base", raw=False)
    with pytest.raises(InvalidForm, match="flat"):
        host.fetch(site.url, cache="masters", raw=False, traits=NEEDS_RAW)
    assert () == site.server.requests


def test_what_cannot_be_cleaned_up_fails_no_delivery(site: Site) -> None:
    """Ironic cleans up within each miss, and the miss fails when that does."""
    site.raw()
    host = site.host(max_size="1B", ttl="1s", keep_recent="0s")
    (site.masters / str(uuid.uuid4())).symlink_to("nowhere")
    (site.masters / "unreadable").mkdir(mode=0)
    names: Sequence[str] = site.files()
    assert "fetched" == how(host.deliver(site.url, site.node))[0]
    assert set(names) <= set(site.files())
