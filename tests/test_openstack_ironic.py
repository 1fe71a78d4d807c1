"""What takes the place of Ironic's image cache: what holds where no Ironic is. Within an Ironic: tests/components/ironic."""

import hashlib
import inspect
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import underlay.errors
from children import start, tell, told
from corpus import create
from machine import MIB
from underlay.contracts import ImageSource
from underlay.errors import ImageNotFound, InsufficientSpace, SourceUnavailable, UnderlayError
from underlay.filesystems import free_bytes
from underlay.model import Digest
from underlay.openstack import ironic
from underlay.openstack.ironic import ImageCache, clean_up_all, clean_up_caches, cleanup
from underlay.openstack.ironic.checksums import expected_digest, get_checksum_from_url
from underlay.openstack.ironic.exceptions import OURS, IronicException, exception_class, translated
from underlay.openstack.ironic.options import Options
from underlay.openstack.ironic.refs import read_ref
from underlay.openstack.ironic.sources import ConductorSource, http_source, located, sources_of
from underlay.refs import parse_ref
from underlay.testing.bootimage import write_qcow2, write_raw
from underlay.testing.fakes import FakeImage, FakeSource
from underlay.testing.httpserver import Served, Server, serving

Mounted = Callable[..., Path]
PATH = "/image"
LONG_AGO = datetime(2024, 5, 17, 12, 30, 45, tzinfo=UTC)
HOUR, DAY = 3600, 86400
GLANCE = "70a599e0-31e7-49b7-b260-868f441e862b"
LOGGER = "ironic.drivers.modules.image_cache"
leases = pytest.mark.component("leases")


@dataclass(frozen=True, slots=True)
class Site:
    """A directory for masters, one for nodes, and a web server with one image."""

    root: Path
    server: Server

    @property
    def masters(self) -> Path:
        return self.root / "masters"

    @property
    def href(self) -> str:
        return self.server.url(PATH)

    def cache(self, *, size: int = 1 << 40, ttl: int = DAY, **how: Any) -> ImageCache:
        return ImageCache(os.fspath(self.masters), size, ttl, **how)

    def node(self, name: str = "disk") -> Path:
        (self.root / "nodes").mkdir(exist_ok=True)
        return self.root / "nodes" / name

    def serve(self, file: Path, path: str = PATH, **how: Any) -> bytes:
        """Serve a file; its content."""
        self.server.serve(path, Served(file, **({"etag": f'"{time.monotonic_ns()}"'} | how)))
        return file.read_bytes()

    def raw(self, name: str = "image.raw", *, message: str = "an image", size: int = 2 * MIB, **how: Any) -> bytes:
        write_raw(self.root / name, size=size, message=message)
        return self.serve(self.root / name, **how)

    def qcow2(self, name: str = "image.qcow2", **how: Any) -> bytes:
        write_qcow2(self.root / name, size=4 * MIB, message="an image")
        return self.serve(self.root / name, **how)

    def names(self) -> set[str]:
        return set(os.listdir(self.masters)) - {".underlay"}

    def bodies(self) -> int:
        return self.server.bodies(PATH)

    def master(self, name: str, *, age: float, size: int = MIB) -> Path:
        """A master that nobody has, last used so long ago."""
        self.masters.mkdir(exist_ok=True)
        return aged_master(self.masters, name, age=age, size=size)


def aged_master(directory: Path, name: str, *, age: float, size: int = MIB) -> Path:
    path = directory / str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    path.write_bytes(os.urandom(size))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving({}) as server:
        yield Site(tmp_path, server)


@pytest.fixture
def registry() -> Iterator[list[tuple[int, type[Any]]]]:
    """The list of registered caches, empty for the test."""
    before = list(ironic._cache_cleanup_list)
    ironic._cache_cleanup_list.clear()
    yield ironic._cache_cleanup_list
    ironic._cache_cleanup_list[:] = before


def raised(name: str) -> "AbstractContextManager[pytest.ExceptionInfo[IronicException], bool]":
    return pytest.raises(OURS[name])


# --------------------------------------------------------------------------------------------------------- names and signatures


def test_the_parameters_are_ironic_s() -> None:
    def parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
        return [(one.name, one.default) for one in inspect.signature(function).parameters.values()]

    nothing = inspect.Parameter.empty
    fetch = [("ctx", None), ("force_raw", None), ("expected_format", None), ("expected_checksum", None)]
    assert [
        ("master_dir", nothing), ("cache_size", nothing), ("cache_ttl", nothing), ("disable_validation", False),
        ("force_raw", True),
    ] == parameters(ImageCache)  # fmt: skip
    assert [
        ("self", nothing), ("href", nothing), ("dest_path", nothing), *fetch, ("expected_checksum_algo", None),
        ("image_auth_data", None),
    ] == parameters(ImageCache.fetch_image)  # fmt: skip
    assert [("self", nothing), ("amount", None)] == parameters(ImageCache.clean_up)
    assert [
        ("ctx", nothing), ("directory", nothing), ("images_info", nothing), ("image_auth_data", None)
    ] == parameters(clean_up_caches)  # fmt: skip
    assert [] == parameters(clean_up_all)
    assert [("priority", nothing)] == parameters(cleanup)
    for kind in (ironic.InstanceImageCache, ironic.TFTPImageCache, ironic.ISOImageCache):
        assert [] == parameters(kind)


def test_a_cache_makes_its_directory_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    cache = ImageCache(os.fspath(tmp_path / "a/b"), 5, 7, disable_validation=True, force_raw=False)
    assert (tmp_path / "a/b").is_dir()
    assert (os.fspath(tmp_path / "a/b"), 5, 7) == (cache.master_dir, cache._cache_size, cache._cache_ttl)
    assert (True, False) == (cache._disable_validation, cache._force_raw)
    assert None is ImageCache(None, 5, 7).master_dir


def test_importing_the_module_imports_nothing_of_ironic_or_oslo() -> None:
    code = """
import sys
import underlay.openstack.ironic
print([name for name in sys.modules if name.startswith(("ironic", "oslo"))])
"""
    assert "[]\n" == subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_without_ironic_the_options_are_ironic_s_defaults() -> None:
    options = Options.load()
    assert options == Options()
    assert (20480 * MIB, 10080 * 60) == (options.image_cache_bytes, options.image_cache_seconds)
    assert (20480 * MIB, 10080 * 60) == (options.iso_cache_bytes, options.iso_cache_seconds)
    assert 20 == options.transfers
    assert 1 == Options(parallel_image_downloads=False).transfers


# ----------------------------------------------------------------------------------------------------------------------- fetch


def test_an_image_is_delivered_as_a_link_to_its_master(site: Site) -> None:
    content = site.raw()
    assert "raw" == site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()
    assert {f"{uuid.uuid5(uuid.NAMESPACE_URL, site.href)}.converted"} == site.names()
    assert 2 == site.node().stat().st_nlink


def test_a_second_node_is_served_from_the_cache(site: Site) -> None:
    site.raw()
    for name in ("one", "two", "two"):
        site.cache().fetch_image(site.href, os.fspath(site.node(name)))
    assert 1 == site.bodies()
    assert 3 == site.node("two").stat().st_nlink


def test_what_is_right_already_stays_untouched(site: Site) -> None:
    site.raw()
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    before = site.node().parent.stat().st_mtime_ns
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert before == site.node().parent.stat().st_mtime_ns


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize(
    ("constructed", "asked", "expected"),
    [(True, None, "raw"), (False, None, "qcow2"), (True, False, "qcow2"), (False, True, "raw")],
)
def test_the_form_is_the_constructor_s_unless_the_fetch_says(
    site: Site,
    *,
    constructed: bool,
    asked: bool | None,
    expected: str,
) -> None:
    served = site.qcow2()
    cache = site.cache(force_raw=constructed)
    assert expected == cache.fetch_image(site.href, os.fspath(site.node()), force_raw=asked)
    assert (expected == "qcow2") == (served == site.node().read_bytes())
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, site.href))
    assert {f"{name}.converted" if expected == "raw" else name} == site.names()


@pytest.mark.component("qemu-img")
def test_the_raw_form_is_made_of_the_form_as_served(site: Site) -> None:
    site.qcow2()
    for force_raw in (False, True, False, True):
        site.cache().fetch_image(site.href, os.fspath(site.node(str(force_raw))), force_raw=force_raw)
    assert 1 == site.bodies()
    assert 2 == len(site.names())


def test_a_cache_without_validation_keeps_anything_as_it_is_served(site: Site) -> None:
    site.server.serve(PATH, Served(b"QFI\xfbno disk at all", etag='"1"'))
    cache = site.cache(disable_validation=True, force_raw=False)
    assert None is cache.fetch_image(site.href, os.fspath(site.node()))
    assert b"QFI\xfbno disk at all" == site.node().read_bytes()


@pytest.mark.parametrize("force_raw", [True, False])
def test_a_kernel_is_delivered_as_it_is_whatever_ironic_forces(site: Site, *, force_raw: bool) -> None:
    site.server.serve(PATH, Served(b"\x1f\x8b\x08 an initial ramdisk" * 100, etag='"1"'))
    site.cache(disable_validation=True).fetch_image(site.href, os.fspath(site.node()), force_raw=force_raw)
    assert b"\x1f\x8b\x08 an initial ramdisk" * 100 == site.node().read_bytes()


def test_a_format_is_not_expected_of_a_cache_without_validation(site: Site) -> None:
    with pytest.raises(AssertionError):
        site.cache(disable_validation=True).fetch_image(site.href, os.fspath(site.node()), expected_format="raw")
    assert () == site.server.requests


@pytest.mark.parametrize("expected", ["qcow2", "iso"])
def test_another_format_than_the_expected_is_refused_and_nothing_is_kept(site: Site, expected: str) -> None:
    site.raw()
    with raised("InvalidImage") as error:
        site.cache().fetch_image(site.href, os.fspath(site.node()), expected_format=expected)
    assert expected in str(error.value)
    assert set() == site.names()
    assert not site.node().exists()


def test_a_hit_of_another_format_than_the_expected_is_refused(site: Site) -> None:
    site.raw()
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    with raised("InvalidImage"):
        site.cache().fetch_image(site.href, os.fspath(site.node("two")), expected_format="qcow2")
    assert not site.node("two").exists()
    assert 1 == site.bodies()


@pytest.mark.parametrize("expected", ["raw", "gpt", "aki", "ari"])
def test_a_disk_with_a_boot_sector_is_raw_and_a_kernel_may_be_anything(site: Site, expected: str) -> None:
    content = site.raw()
    site.cache().fetch_image(site.href, os.fspath(site.node()), expected_format=expected)
    assert content == site.node().read_bytes()


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("expected", [None, "vmdk"])
def test_a_format_that_is_not_permitted_is_refused(site: Site, expected: str | None) -> None:
    site.serve(create(site.root / "image.vmdk", "vmdk", MIB))
    with raised("InvalidImage") as error:
        site.cache().fetch_image(site.href, os.fspath(site.node()), expected_format=expected)
    assert "vmdk" in str(error.value)
    assert "permitted" in str(error.value)
    assert (0 if expected else 1) == site.bodies()
    assert set() == site.names()


@pytest.mark.component("qemu-img")
def test_an_image_that_names_another_file_is_refused(site: Site) -> None:
    write_raw(site.root / "base", size=MIB, message="secret")
    site.serve(create(site.root / "image.qcow2", "qcow2", MIB, backing=site.root / "base"))
    with raised("InvalidImage") as error:
        site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert "backing" in str(error.value)
    assert set() == site.names()


def test_credentials_for_image_services_do_not_matter_to_a_web_server(site: Site) -> None:
    site.raw()
    site.cache().fetch_image(site.href, os.fspath(site.node()), image_auth_data={"username": "u", "password": "p"})
    assert all("authorization" not in request.headers for request in site.server.requests)


def test_a_glance_image_is_called_by_its_uuid_however_it_is_written() -> None:
    for href in (GLANCE, GLANCE.upper(), GLANCE.replace("-", ""), f"glance://{GLANCE}", f"glance://host:9292/v2/{GLANCE}"):
        assert parse_ref(GLANCE) == read_ref(href)


@pytest.mark.parametrize(
    "href", [GLANCE, f"glance://{GLANCE}", "oci://host/repo@sha256:" + "0" * 64, "nfs://host/image", "ftp://host/image"]
)
def test_what_only_an_image_service_of_ironic_s_can_fetch_is_refused_with_that(site: Site, href: str) -> None:
    with raised("ImageRefValidationFailed") as error:
        site.cache().fetch_image(href, os.fspath(site.node()))
    assert "Ironic cannot be imported" in str(error.value) or "no source serves" in str(error.value)


@pytest.mark.parametrize("href", ["", "image", "glance://nothing", "http://", "https:///path", "/etc/passwd"])
def test_what_is_no_image_is_refused(site: Site, href: str) -> None:
    with raised("ImageRefValidationFailed"):
        site.cache().fetch_image(href, os.fspath(site.node()))


@pytest.mark.parametrize("href", ["oci://host/repo", "oci://docker.io/debian:12", "oci://host:5000/a/b@sha256:" + "0" * 64])
def test_a_master_of_a_registry_is_named_by_the_reference_as_it_is_written(href: str) -> None:
    ref = read_ref(href)
    assert (href, href) == (ref.canonical, ref.location)


@pytest.mark.parametrize("href", ["file:///etc/hostname", "file:///dev/zero", "file:///var/lib/ironic/../../../etc/hostname"])
def test_a_file_outside_the_allowed_paths_is_refused(site: Site, href: str) -> None:
    with raised("ImageRefValidationFailed"):
        site.cache().fetch_image(href, os.fspath(site.node()))
    assert not site.node().exists()


# ------------------------------------------------------------------------------------------------------------------- freshness


def test_each_fetch_asks_whether_the_image_has_changed(site: Site) -> None:
    site.raw(message="old")
    old = site.node("old")
    site.cache().fetch_image(site.href, os.fspath(old))
    content = site.raw(message="new", last_modified=LONG_AGO - timedelta(days=900))
    site.cache().fetch_image(site.href, os.fspath(site.node("new")))
    assert content == site.node("new").read_bytes()
    assert b"old" in old.read_bytes()
    assert 1 == old.stat().st_nlink


def test_content_that_is_replaced_by_older_content_is_fetched_anew(site: Site) -> None:
    site.raw(message="old", etag=None, last_modified=LONG_AGO)
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    content = site.raw(message="even older", etag=None, last_modified=LONG_AGO - timedelta(days=900))
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()


def test_without_a_last_modified_or_an_etag_the_image_is_transferred_each_time_and_its_master_stays(site: Site) -> None:
    site.raw(etag=None)
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    inode = site.node().stat().st_ino
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert 2 == site.bodies()
    assert inode == site.node().stat().st_ino
    content = site.raw(etag=None, message="new")
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()


@pytest.mark.parametrize("etag", [None, '"1"'])
def test_a_last_modified_in_the_future_never_hides_a_change(site: Site, etag: str | None) -> None:
    future = datetime.now(UTC) + timedelta(days=30)
    site.raw(etag=etag, last_modified=future)
    for _ in range(2):
        site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert (2 if etag is None else 1) == site.bodies()
    content = site.raw(etag=etag and '"2"', last_modified=future, message="new")
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()


def test_a_server_that_refuses_head_serves_all_the_same(site: Site) -> None:
    content = site.raw(head_status=405)
    for _ in range(2):
        site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()
    assert 1 == site.bodies() - sum(request.sent == 1 for request in site.server.requests)


@leases
def test_no_store_is_delivered_and_not_kept(site: Site) -> None:
    content = site.raw(headers={"Cache-Control": "no-store"})
    for _ in range(2):
        site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()
    assert 2 == site.bodies()
    assert set() == site.names()
    assert 1 == site.node().stat().st_nlink


def test_a_master_stands_in_for_a_server_that_does_not_answer(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    content = site.raw()
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    site.raw(status=503)
    with caplog.at_level(logging.WARNING, LOGGER):
        site.cache().fetch_image(site.href, os.fspath(site.node("two")))
    assert content == site.node("two").read_bytes()
    assert "source-unavailable" in caplog.text


# ------------------------------------------------------------------------------------------------------------------- checksums

CONTENT = b"\x55" * 4096


def hashed(algorithm: str) -> str:
    return hashlib.new(algorithm, CONTENT, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    ("checksum", "algorithm"),
    [
        (hashed("sha256"), None),
        (hashed("sha256").upper(), "sha256"),
        (f"sha256:{hashed('sha256')}", "sha256"),
        (f"SHA512:{hashed('sha512').upper()}", None),
        (hashed("sha512"), "SHA512"),
        (hashed("sha1"), None),
        (hashed("md5"), None),
        (hashed("md5"), "md5"),
    ],
)
def test_a_right_checksum_is_accepted_in_each_spelling(site: Site, checksum: str, algorithm: str | None) -> None:
    site.server.serve(PATH, Served(CONTENT, etag='"1"'))
    for name in ("miss", "hit"):
        site.cache().fetch_image(
            site.href, os.fspath(site.node(name)), expected_checksum=checksum, expected_checksum_algo=algorithm
        )
    assert CONTENT == site.node("hit").read_bytes()
    assert 1 == site.bodies()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_a_wrong_checksum_is_refused_and_what_was_there_stays(site: Site, *, algorithm: str, cached: bool) -> None:
    site.server.serve(PATH, Served(CONTENT, etag='"1"'))
    if cached:
        site.cache().fetch_image(site.href, os.fspath(site.node("first")))
    site.node().write_bytes(b"what was there")
    wrong = "0" * len(hashed(algorithm))
    with raised("ImageChecksumError") as error:
        site.cache().fetch_image(site.href, os.fspath(site.node()), expected_checksum=wrong)
    assert wrong in str(error.value)
    assert hashed(algorithm) in str(error.value)
    assert b"what was there" == site.node().read_bytes()
    assert cached == bool(site.names())


@pytest.mark.parametrize(
    ("checksum", "algorithm", "expected"),
    [
        ("0" * 64, "crc32", "ImageChecksumAlgorithmFailure"),
        ("0" * 64, "sha3_256", "ImageChecksumAlgorithmFailure"),
        ("crc32:00000000", None, "ImageChecksumAlgorithmFailure"),
        ("0" * 63, None, "ImageChecksumError"),
        ("0" * 63, "sha256", "ImageChecksumError"),
        ("sha256:" + "0" * 32, None, "ImageChecksumError"),
        ("sha256:", None, "ImageChecksumError"),
        ("g" * 64, None, "ImageChecksumError"),
        ("", None, "ImageChecksumError"),
    ],
)
def test_what_is_no_checksum_is_refused_before_anything_is_asked(
    site: Site, checksum: str, algorithm: str | None, expected: str
) -> None:
    with pytest.raises(OURS["InvalidImage"]) as error:
        site.cache().fetch_image(
            site.href, os.fspath(site.node()), expected_checksum=checksum, expected_checksum_algo=algorithm
        )
    assert expected == type(error.value).__name__
    assert () == site.server.requests


@pytest.mark.parametrize("checksum", [hashed("md5"), f"md5:{hashed('md5')}", f"MD5:{hashed('md5').upper()}"])
@pytest.mark.parametrize("algorithm", [None, "md5", "MD5"])
def test_md5_is_taken_only_where_it_is_allowed(checksum: str, algorithm: str | None) -> None:
    assert Digest("md5", hashed("md5")) == expected_digest(checksum, algorithm, href="x", options=Options())
    with raised("ImageChecksumAlgorithmFailure") as error:
        expected_digest(checksum, algorithm, href="x", options=Options(allow_md5_checksum=False))
    assert "allow_md5_checksum" in str(error.value)


def test_no_checksum_is_checked_where_that_is_switched_off() -> None:
    assert None is expected_digest("0" * 64, "sha256", href="x", options=Options(disable_file_checksum=True))
    assert None is expected_digest(None, "sha256", href="x", options=Options())


def test_a_checksum_may_be_the_url_of_a_file_that_lists_it(site: Site) -> None:
    site.server.serve("/a.img", Served(CONTENT, etag='"1"'))
    site.server.serve("/SUMS", Served(f"{'0' * 64}  aXimg\n{hashed('sha256')}  a.img\n".encode()))
    href, sums = site.server.url("/a.img"), site.server.url("/SUMS")
    site.cache().fetch_image(href, os.fspath(site.node()), expected_checksum=sums)
    assert CONTENT == site.node().read_bytes()
    assert f"sha256:{hashed('sha256')}" == get_checksum_from_url(sums, href)
    site.server.serve("/SUMS", Served(f"{'0' * 64}  a.img\n{hashed('sha256')}  aXimg\n".encode()))
    with raised("ImageChecksumError"):
        site.cache().fetch_image(href, os.fspath(site.node()), expected_checksum=sums)


@pytest.mark.parametrize("content", [b"", b"<html>", f"{'0' * 64}  aXimg\n{'0' * 64}  b\n".encode(), b"0" * 63])
def test_a_file_that_does_not_list_the_image_is_refused(site: Site, content: bytes) -> None:
    site.server.serve("/SUMS", Served(content))
    with raised("ImageDownloadFailed") as error:
        get_checksum_from_url(site.server.url("/SUMS"), site.server.url("/a.img"))
    assert "/SUMS" in str(error.value)


@pytest.mark.parametrize("how", [{}, {"chunked": True}])
def test_a_file_of_checksums_is_not_read_for_ever(site: Site, how: dict[str, Any]) -> None:
    site.server.serve("/SUMS", Served(f"{'0' * 64}  a.img\n".encode() + b"#" * (64 * MIB), **how))
    with raised("ImageRefValidationFailed") as error:
        get_checksum_from_url(site.server.url("/SUMS"), site.server.url("/a.img"))
    assert "more than 1048576 bytes" in str(error.value)
    assert site.server.sent("/SUMS") < 32 * MIB


def test_a_file_of_checksums_that_is_not_there_says_so(site: Site) -> None:
    with raised("ImageRefValidationFailed") as error:
        get_checksum_from_url(site.server.url("/SUMS"), "http://h/a.img")
    assert "404" in str(error.value)


# ------------------------------------------------------------------------------------------------------------------- what fails


def _every_error() -> list[type[UnderlayError]]:
    found, ahead = [], [UnderlayError]
    while ahead:
        kind = ahead.pop()
        found.append(kind)
        ahead += kind.__subclasses__()
    return sorted((kind for kind in found if kind.__module__ == underlay.errors.__name__), key=lambda kind: kind.__name__)


EXPECTED: Mapping[str, str] = {
    **dict.fromkeys(
        ["BadInput", "InvalidRef", "UnknownScheme", "InvalidSize", "InvalidForm", "UnknownBackend", "ConfigError"],
        "ImageRefValidationFailed",
    ),
    **dict.fromkeys(["UnknownCache", "SourceError", "ImageNotFound", "NotAuthorized"], "ImageRefValidationFailed"),
    **dict.fromkeys(["SourceRefused", "UntrustedCertificate", "ExtraMissing"], "ImageRefValidationFailed"),
    "SourceUnavailable": "ImageRefValidationFailed",  # until bytes are on their way
    "InvalidDigest": "ImageChecksumError",
    "DigestMismatch": "ImageChecksumError",
    "SignatureRefused": "ImageChecksumError",
    **dict.fromkeys(["ImageRefused", "UnsafeImage", "FormatMismatch", "VirtualSizeRefused", "ImageDamaged"], "InvalidImage"),
    **dict.fromkeys(["ToolError", "ToolMissing", "ToolFailed", "ToolTimedOut"], "ImageConvertFailed"),
    "InsufficientSpace": "InsufficientDiskSpace",
}
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "DigestMismatch": {"expected": "sha256:0", "actual": "sha256:1"},
    "UnsafeImage": {"rule": "rule", "why": "our reason"},
    "InsufficientSpace": {"needed": 5, "free": 2, "reclaimable": {}},
    "DiskTooSmall": {"size": 1, "virtual_size": 2},
    "Unsupported": {"what": "clone"},
}


@pytest.mark.parametrize("kind", _every_error(), ids=lambda kind: kind.__name__)
def test_each_error_has_its_exception_with_our_reason(kind: type[UnderlayError]) -> None:
    name = kind.__name__
    error = kind("our reason", **ARGUMENTS.get(name, {"hint": "our hint"}))
    with raised(EXPECTED.get(name, "ImageDownloadFailed")) as caught:
        with translated("http://user:secret@host/image?signature=secret", where="/masters"):
            raise error
    assert EXPECTED.get(name, "ImageDownloadFailed") == type(caught.value).__name__
    assert error.message in str(caught.value)
    assert error.hint is None or error.hint in str(caught.value)
    assert "secret" not in str(caught.value)
    assert error is caught.value.__cause__


def test_a_source_that_fails_while_bytes_are_on_their_way_is_a_failed_download() -> None:
    with raised("ImageDownloadFailed"):
        with translated("http://host/image", where="/masters", is_transferring=lambda: True):
            raise SourceUnavailable("the server went silent")


def test_a_file_system_that_fills_up_unforeseen_is_a_failed_download() -> None:
    with raised("ImageDownloadFailed"):
        with translated("http://host/image", where="/masters"):
            raise InsufficientSpace("/masters", needed=None, free=0, reclaimable={})


def test_sizes_are_in_mib_and_small_ones_are_not_nothing() -> None:
    with raised("InsufficientDiskSpace") as error:
        with translated("http://host/image", where="/masters"):
            raise InsufficientSpace("/masters", needed=MIB // 2, free=1024, reclaimable={})
    kwargs = error.value.kwargs
    assert {"path": "/masters", "required": 0.5, "actual": 1 / 1024} == kwargs


def test_an_error_of_the_system_is_a_failed_download() -> None:
    with raised("ImageDownloadFailed"):
        with translated("http://host/image", where="/masters"):
            raise PermissionError(13, "Permission denied", "/masters")


def test_the_exceptions_are_attributes_of_the_module_and_derive_from_each_other_as_ironic_s_do() -> None:
    for name in OURS:
        assert OURS[name] is getattr(ironic, name) is exception_class(name)
        assert issubclass(OURS[name], OURS["IronicException"])
    for name in ("ImageChecksumError", "ImageChecksumAlgorithmFailure", "ImageChecksumURLNotSupported", "ImageMatchFailure"):
        assert issubclass(OURS[name], OURS["InvalidImage"])
    assert issubclass(OURS["InvalidImage"], OURS["ImageUnacceptable"])
    with pytest.raises(AttributeError):
        _ = ironic.ImageOfSomethingElse


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("InsufficientDiskSpace", {"path": "/x", "required": 2, "actual": 1}),
        ("ImageDownloadFailed", {"image_href": "x", "reason": "y"}),
        ("ImageRefValidationFailed", {"image_href": "x", "reason": "y"}),
        ("ImageNotFound", {"image_id": "x"}),
        ("ImageUnacceptable", {"image_id": "x", "reason": "y"}),
        ("ImageConvertFailed", {"image_id": "x", "reason": "y"}),
        ("InstanceDeployFailure", {"reason": "y"}),
        ("InsufficientMemory", {"required": 2, "free": 1}),
        ("ImageHostRateLimitFailure", {"image_ref": "x"}),
    ],
)
def test_an_exception_tells_its_arguments(name: str, arguments: dict[str, Any]) -> None:
    told_by = str(OURS[name](**arguments))
    assert all(str(value) in told_by for value in arguments.values())
    assert "instead" == str(OURS[name]("instead", **arguments))


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (Served(status=404), "ImageRefValidationFailed"),
        (Served(status=403), "ImageRefValidationFailed"),
        (Served(status=503), "ImageRefValidationFailed"),
        (Served(CONTENT, cut_after=100), "ImageDownloadFailed"),
        (Served(CONTENT, for_get=Served(status=500)), "ImageDownloadFailed"),
        (Served(b""), "InvalidImage"),
    ],
    ids=["404", "403", "503", "cut", "get-500", "empty"],
)
def test_a_failing_fetch_leaves_no_master_and_what_was_there(site: Site, served: Served, expected: str) -> None:
    site.server.serve(PATH, served)
    site.node().write_bytes(b"what was there")
    with raised(expected) as error:
        site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert expected == type(error.value).__name__
    assert b"what was there" == site.node().read_bytes()
    assert ["disk"] == os.listdir(site.node().parent)
    assert set() == site.names()


def test_a_missing_directory_of_the_destination_is_a_failed_download(site: Site) -> None:
    site.raw()
    with raised("ImageDownloadFailed") as error:
        site.cache().fetch_image(site.href, os.fspath(site.root / "nothing/disk"))
    assert "nothing" in str(error.value)
    assert 0 == site.bodies()


@pytest.mark.component("root", "tmpfs")
def test_a_read_only_destination_is_a_failed_download_and_keeps_the_master(site: Site, mounted: Mounted) -> None:
    content = site.raw()
    where = mounted("tmpfs", 16 * MIB)
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    with raised("ImageDownloadFailed"):
        site.cache().fetch_image(site.href, os.fspath(where / "disk"))
    subprocess.run(["mount", "-o", "remount,rw", where], check=True)
    site.cache().fetch_image(site.href, os.fspath(where / "disk"))
    assert content == (where / "disk").read_bytes()
    assert 1 == site.bodies()


@pytest.mark.component("root", "tmpfs")
def test_on_another_file_system_it_is_a_copy_from_the_first_fetch_on_and_is_not_copied_again(
    site: Site, mounted: Mounted
) -> None:
    content = site.raw()
    path = mounted("tmpfs", 16 * MIB) / "disk"
    site.cache().fetch_image(site.href, os.fspath(path))
    inode = path.stat().st_ino
    site.cache().fetch_image(site.href, os.fspath(path))
    assert inode == path.stat().st_ino
    assert content == path.read_bytes()
    site.cache(ttl=0, size=0).clean_up()  # the copy is in use as a link is
    assert 1 == len(site.names())


@pytest.mark.component("root", "ext4")
@pytest.mark.parametrize("how", [{}, {"chunked": True}], ids=["announced", "unannounced"])
def test_a_disk_that_is_full_leaves_nothing_and_does_not_keep_the_next_image_from_coming(
    site: Site, mounted: Mounted, how: dict[str, Any]
) -> None:
    where = mounted("ext4", 16 * MIB)
    (where / "nodes").mkdir()
    cache = ImageCache(os.fspath(where / "masters"), 1 << 40, DAY)
    site.server.serve(PATH, Served(b"\x55" * (64 * MIB), etag='"1"', **how))
    with pytest.raises((OURS["InsufficientDiskSpace"], OURS["ImageDownloadFailed"])) as error:
        cache.fetch_image(site.href, os.fspath(where / "nodes/disk"))
    assert "no room" in str(error.value)
    assert [] == os.listdir(where / "nodes")
    assert [".underlay"] == os.listdir(where / "masters")
    site.server.serve(PATH, Served(CONTENT, etag='"2"'))
    cache.fetch_image(site.href, os.fspath(where / "nodes/disk"))
    assert CONTENT == (where / "nodes/disk").read_bytes()


# -------------------------------------------------------------------------------------------------------------- without a cache


def test_without_a_directory_an_image_goes_straight_to_its_place_each_time(site: Site) -> None:
    content = site.raw()
    cache = ImageCache(None, 0, 0)
    for _ in range(2):
        assert "raw" == cache.fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()
    assert ["disk"] == os.listdir(site.node().parent)
    assert 1 == site.node().stat().st_nlink
    assert 2 == site.bodies()
    cache.clean_up()
    cache.clean_up(amount=1)


def test_without_a_directory_a_failing_fetch_leaves_what_was_there(site: Site) -> None:
    site.server.serve(PATH, Served(CONTENT, cut_after=100))
    site.node().write_bytes(b"what was there")
    with raised("ImageDownloadFailed"):
        ImageCache(None, 0, 0).fetch_image(site.href, os.fspath(site.node()))
    assert b"what was there" == site.node().read_bytes()
    assert ["disk"] == os.listdir(site.node().parent)
    with raised("ImageDownloadFailed"):
        ImageCache(None, 0, 0).fetch_image(site.href, os.fspath(site.root / "nothing/disk"))


def test_without_a_directory_no_room_is_made(site: Site) -> None:
    clean_up_caches(None, None, [(site.href, "/x")])
    assert () == site.server.requests


# --------------------------------------------------------------------------------------------------------------------- clean up


@leases
def test_masters_older_than_the_time_to_live_go(site: Site) -> None:
    old, young = site.master("old", age=HOUR + 60), site.master("young", age=HOUR - 60)
    site.cache(ttl=HOUR).clean_up()
    assert {young.name} == site.names()
    assert not old.exists()


@leases
def test_the_oldest_go_until_the_cache_has_its_size(site: Site) -> None:
    masters = [site.master(str(age), age=age) for age in (400, 300, 200, 100)]
    site.cache(size=2 * MIB + 4096).clean_up()
    assert {one.name for one in masters[2:]} == site.names()


@leases
def test_masters_in_use_stay_and_count(site: Site) -> None:
    used = site.master("used", age=9 * DAY, size=4 * MIB)
    site.node().hardlink_to(used)
    site.master("unused", age=60)
    site.cache(size=MIB, ttl=HOUR).clean_up()
    assert {used.name} == site.names()


@leases
def test_a_master_s_age_is_told_by_its_last_use_and_not_by_a_backup_that_reads_it(site: Site) -> None:
    path = site.master("read", age=9 * DAY)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    path.chmod(0o600)
    site.cache(ttl=DAY).clean_up()
    assert set() == site.names()


@leases
def test_an_amount_that_cannot_be_had_is_logged_and_no_exception(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    used = site.master("used", age=HOUR)
    site.node().hardlink_to(used)
    site.master("unused", age=HOUR, size=2 * MIB)
    assert None is site.cache().clean_up(amount=1 << 50)  # type: ignore[func-returns-value]
    assert {used.name} == site.names()
    assert [logging.WARNING] == [record.levelno for record in caplog.records if "could not be freed" in record.message]


@leases
def test_strangers_links_and_pipes_stay_and_are_told_of_once_at_most(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    old = site.master("old", age=9 * DAY)
    (site.masters / "snponly.efi").write_bytes(b"boot")
    (site.masters / str(uuid.uuid4())).symlink_to("nowhere")
    (site.masters / str(uuid.uuid4())).symlink_to(old)
    os.mkfifo(site.masters / str(uuid.uuid4()))
    (site.masters / "tmpabcdefgh").mkdir()
    strangers = site.names() - {old.name}
    for amount in (None, 1, None):
        site.cache(ttl=HOUR, size=0).clean_up(amount)
    assert strangers == site.names()
    for name in strangers:
        assert sum(name in record.getMessage() for record in caplog.records) <= 1


def test_a_link_to_nothing_in_the_cache_fails_no_fetch_of_another_image(site: Site) -> None:
    site.masters.mkdir()
    (site.masters / str(uuid.uuid4())).symlink_to("nowhere")
    content = site.raw()
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()
    (site.masters / str(uuid.uuid5(uuid.NAMESPACE_URL, site.server.url("/other")))).symlink_to("nowhere")
    site.server.serve("/other", Served(CONTENT, etag='"1"'))
    with raised("ImageDownloadFailed") as error:
        site.cache(force_raw=False).fetch_image(site.server.url("/other"), os.fspath(site.node("other")))
    assert "plain file" in str(error.value)


def test_a_directory_that_is_gone_is_logged_and_no_exception(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    cache = site.cache()
    site.masters.rmdir()
    cache.clean_up()
    cache.clean_up(amount=1)
    assert {logging.ERROR} == {record.levelno for record in caplog.records}
    assert os.fspath(site.masters) in caplog.text


@leases
def test_after_a_fetch_the_cache_has_its_size_again(site: Site) -> None:
    site.master("old", age=60, size=4 * MIB)
    site.raw()
    site.cache(size=3 * MIB).fetch_image(site.href, os.fspath(site.node()))
    assert 1 == len(site.names())
    assert 2 == site.node().stat().st_nlink


def test_a_clean_up_that_fails_does_not_fail_the_delivery(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(ImageCache):
        def clean_up(self, amount: int | None = None) -> None:
            raise RuntimeError("our test")

    content = site.raw()
    Failing(os.fspath(site.masters), 0, 0).fetch_image(site.href, os.fspath(site.node()))
    assert content == site.node().read_bytes()
    assert "could not be cleaned up" in caplog.text


@leases
def test_what_is_delivered_is_kept_however_small_the_cache_is(site: Site) -> None:
    site.raw()
    cache = site.cache(size=0, ttl=0)
    cache.fetch_image(site.href, os.fspath(site.node()))
    assert 2 == site.node().stat().st_nlink
    site.node().unlink()
    cache.clean_up()
    assert set() == site.names()


# ------------------------------------------------------------------------------------------------------------ registered caches


@dataclass
class Told:
    """Names in the order in which caches were cleaned up, with the amounts."""

    calls: list[tuple[str, int | None]]

    def cache(self, name: str, directory: Path | None, *, error: Exception | None = None) -> type[Any]:
        """A class of anybody's that can be registered."""
        calls = self.calls

        class Registered:
            master_dir = None if directory is None else os.fspath(directory)

            def clean_up(self, amount: int | None = None) -> None:
                calls.append((name, amount))
                if error is not None:
                    raise error

        return Registered


def test_ironic_s_three_caches_are_registered_by_what_is_cheapest_to_lose() -> None:
    assert [(75, ironic.ISOImageCache), (50, ironic.InstanceImageCache), (25, ironic.TFTPImageCache)] == (
        ironic._cache_cleanup_list
    )


def test_the_highest_priority_comes_first_and_equals_in_their_order(registry: list[tuple[int, type[Any]]]) -> None:
    told_of = Told([])
    classes = [told_of.cache(name, None) for name in "abcd"]
    for priority, kind in zip((5, 7, 5, 9), classes, strict=True):
        assert kind is cleanup(priority)(kind)
    assert [(9, classes[3]), (7, classes[1]), (5, classes[0]), (5, classes[2])] == registry


def test_one_cache_that_fails_does_not_keep_the_others_from_being_cleaned_up(
    registry: list[tuple[int, type[Any]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told_of = Told([])

    class Unmade:
        def __init__(self) -> None:
            raise OSError("our test")

    cleanup(9)(Unmade)
    cleanup(7)(told_of.cache("failing", tmp_path, error=ValueError("our test")))
    cleanup(5)(told_of.cache("last", tmp_path))
    clean_up_all()
    assert [("failing", None), ("last", None)] == told_of.calls
    assert 2 == caplog.text.count("Traceback")


@pytest.fixture
def room(mounted: Mounted) -> Path:
    """A small file system of our own."""
    return mounted("ext4", 64 * MIB)


def registered_at(room: Path, name: str, priority: int, *, count: int = 0, size: int = 4 * MIB) -> list[Path]:
    """A registered cache on the file system with masters that nobody has; their paths, the oldest first."""
    directory = room / name

    @cleanup(priority)
    class Registered(ImageCache):
        def __init__(self) -> None:
            super().__init__(os.fspath(directory), 1 << 40, DAY)

    cache = Registered()
    masters = [aged_master(directory, f"{name}-{number}", age=HOUR - number, size=size) for number in range(count)]
    cache.clean_up()  # lays the directory out
    return masters


@pytest.mark.component("root", "ext4")
def test_an_amount_is_freed_more_than_is_free_oldest_first_and_no_more(
    room: Path, registry: list[tuple[int, type[Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    masters = registered_at(room, "a", 1, count=4, size=8 * MIB)
    free = free_bytes(room)
    ImageCache(os.fspath(room / "a"), 1 << 40, DAY).clean_up(amount=12 * MIB)
    assert [False, False, True, True] == [one.exists() for one in masters]
    assert free + 16 * MIB - MIB < free_bytes(room)
    assert "could not be freed" not in caplog.text


@pytest.mark.component("root", "ext4")
def test_room_is_made_by_priority_and_no_more_than_is_needed(
    site: Site, room: Path, registry: list[tuple[int, type[Any]]]
) -> None:
    low, high, middle = (registered_at(room, name, priority, count=3) for name, priority in (("l", 1), ("h", 9), ("m", 5)))
    needed = free_bytes(room) + 13 * MIB  # three of the one and one of the other
    site.server.serve(PATH, Served(head_length=needed))
    clean_up_caches(None, os.fspath(room / "l"), [(site.href, "/x")])
    assert free_bytes(room) >= needed
    assert [False] * 3 == [one.exists() for one in high]
    assert [False, True, True] == [one.exists() for one in middle]
    assert [True] * 3 == [one.exists() for one in low]


@pytest.mark.component("root", "ext4")
def test_enough_room_costs_nothing(site: Site, room: Path, registry: list[tuple[int, type[Any]]]) -> None:
    masters = registered_at(room, "a", 1, count=2)
    told_of = Told([])
    cleanup(9)(told_of.cache("high", room))
    site.server.serve(PATH, Served(head_length=free_bytes(room)))
    clean_up_caches(None, os.fspath(room / "a"), [(site.href, "/x")])
    assert [] == told_of.calls
    assert all(one.exists() for one in masters)


@pytest.mark.component("root", "ext4", "tmpfs")
def test_each_cache_is_asked_for_what_is_missing_by_then_and_those_elsewhere_are_not(
    site: Site, room: Path, mounted: Mounted, registry: list[tuple[int, type[Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    told_of = Told([])
    cleanup(9)(told_of.cache("failing", room, error=ValueError("our test")))
    cleanup(8)(told_of.cache("elsewhere", mounted("tmpfs", MIB)))
    cleanup(7)(told_of.cache("disabled", None))
    cleanup(6)(told_of.cache("last", room))
    needed = free_bytes(room) + 100
    site.server.serve(PATH, Served(head_length=needed))
    with raised("InsufficientDiskSpace") as error:
        clean_up_caches(None, os.fspath(room), [(site.href, "/x")])
    assert [("failing", 100), ("last", 100)] == told_of.calls
    kwargs = error.value.kwargs
    assert os.fspath(room) == kwargs["path"]
    assert needed / MIB == kwargs["required"]
    assert free_bytes(room) / MIB == kwargs["actual"]
    assert os.fspath(room) in str(error.value)


@pytest.mark.component("root", "ext4")
def test_an_image_that_is_here_needs_no_room_and_its_master_is_not_given_up(
    site: Site, room: Path, registry: list[tuple[int, type[Any]]]
) -> None:
    masters = registered_at(room, "a", 1, count=1)
    cache = ImageCache(os.fspath(room / "a"), 1 << 40, DAY)
    content = site.raw(size=8 * MIB)
    cache.fetch_image(site.href, os.fspath(room / "disk"))
    (room / "disk").unlink()
    held = room / "a" / f"{uuid.uuid5(uuid.NAMESPACE_URL, site.href)}.converted"
    os.utime(room / "a/.underlay/used" / held.name, (0, 0))  # the least recently used of all
    (room / "filler").write_bytes(b"x" * (free_bytes(room) - MIB))
    clean_up_caches(None, os.fspath(room / "a"), [(site.href, "/x"), (site.href, "/y")])
    assert (True, True) == (held.exists(), masters[0].exists())
    site.server.serve("/other", Served(head_length=3 * MIB))
    clean_up_caches(None, os.fspath(room / "a"), [(site.href, "/x"), (site.server.url("/other"), "/y")])
    assert (True, False) == (held.exists(), masters[0].exists())
    assert [] == os.listdir(room / "a/.underlay/leases")
    cache.fetch_image(site.href, os.fspath(room / "disk"))
    assert content == (room / "disk").read_bytes()
    assert 1 == site.bodies()


@pytest.mark.component("root", "ext4")
def test_a_fetch_that_finds_no_room_takes_it_from_the_conductor_s_other_caches(
    site: Site, room: Path, registry: list[tuple[int, type[Any]]]
) -> None:
    low, high = registered_at(room, "low", 1, count=2), registered_at(room, "high", 9, count=2, size=8 * MIB)
    (room / "filler").write_bytes(b"x" * (free_bytes(room) - 2 * MIB))
    content = os.urandom(4 * MIB)
    site.server.serve(PATH, Served(content, etag='"1"'))
    ImageCache(os.fspath(room / "low"), 1 << 40, DAY).fetch_image(site.href, os.fspath(room / "disk"))
    assert content == (room / "disk").read_bytes()
    assert ([True, True], [False, True]) == ([one.exists() for one in low], [one.exists() for one in high])


def test_the_same_image_twice_is_counted_once(site: Site, registry: list[tuple[int, type[Any]]]) -> None:
    site.raw()
    site.cache()
    clean_up_caches(None, os.fspath(site.masters), [(site.href, "/x"), (site.href, "/y")])
    assert 1 == len(site.server.requests)


def test_what_cannot_be_described_is_told_before_room_is_made(site: Site, registry: list[tuple[int, type[Any]]]) -> None:
    site.cache()
    with raised("ImageRefValidationFailed"):
        clean_up_caches(None, os.fspath(site.masters), [(site.href, "/x")])


def test_a_master_stands_in_for_a_server_that_does_not_answer_as_room_is_made(
    site: Site, registry: list[tuple[int, type[Any]]]
) -> None:
    site.raw()
    site.cache().fetch_image(site.href, os.fspath(site.node()))
    site.raw(status=503)
    clean_up_caches(None, os.fspath(site.masters), [(site.href, os.fspath(site.node()))])


# --------------------------------------------------------------------------------------------------------------- many at a time


def test_one_transfer_serves_all_threads(site: Site) -> None:
    content = site.raw(rate=8 * MIB)

    def fetch(number: int) -> None:
        site.cache().fetch_image(site.href, os.fspath(site.node(str(number))))

    site.node()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(fetch, range(16)))
    assert 1 == site.bodies()
    assert [content] * 16 == [site.node(str(number)).read_bytes() for number in range(16)]
    assert 17 == site.node("0").stat().st_nlink


def fetching(masters: str, href: str, path: str) -> None:
    """A process that fetches one image."""
    told()
    ImageCache(masters, 1 << 40, DAY).fetch_image(href, path)
    tell("done")


def test_one_transfer_serves_all_processes(site: Site) -> None:
    content = site.raw(rate=8 * MIB)
    site.cache()
    paths = [site.node(str(number)) for number in range(4)]
    children = [start(fetching, os.fspath(site.masters), site.href, os.fspath(path)) for path in paths]
    with children[0] as a, children[1] as b, children[2] as c, children[3] as d:
        for child in (a, b, c, d):
            child.say()
        assert ["done"] * 4 == [child.hear() for child in (a, b, c, d)]
    assert 1 == site.bodies()
    assert [content] * 4 == [path.read_bytes() for path in paths]


@leases
def test_clean_ups_and_deliveries_at_once_do_not_fail_each_other(site: Site) -> None:
    contents = {f"/{number}": os.urandom(128 << 10) for number in range(4)}
    for path, content in contents.items():
        site.server.serve(path, Served(content, etag='"1"'))
    ended = threading.Event()

    def clean() -> None:
        while not ended.is_set():
            site.cache(size=0, ttl=0).clean_up()
            site.cache(size=0, ttl=0).clean_up(amount=1)

    def fetch(number: int) -> None:
        path = site.node(f"node-{number}")
        for round_ in range(6):
            href = f"/{(number + round_) % 4}"
            site.cache(size=0, ttl=0).fetch_image(site.server.url(href), os.fspath(path))
            assert contents[href] == path.read_bytes()

    site.node()
    with ThreadPoolExecutor(10) as pool:
        cleaning = [pool.submit(clean) for _ in range(2)]
        fetching_all = [pool.submit(fetch, number) for number in range(8)]
        try:
            for one in fetching_all:
                one.result()
        finally:
            ended.set()
        for one in cleaning:
            one.result()


def test_so_many_images_are_transferred_at_a_time_as_ironic_says() -> None:
    source = FakeSource({f"fake:{number}": FakeImage(b"x" * 64, piece=8, delay=0.005) for number in range(8)})
    limited: ImageSource = ConductorSource(source, threading.Semaphore(3))
    running, most, lock = 0, 0, threading.Lock()

    def read(number: int) -> None:
        nonlocal running, most
        with limited.open(limited.describe(parse_ref(f"fake:{number}"))) as stream:
            with lock:
                running, most = running + 1, max(most, running + 1)
            while stream.readinto(memoryview(bytearray(8))):
                pass
            with lock:
                running -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert 3 == most


# --------------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("hosts", "permit_unknown", "host", "expected"),
    [
        ([], True, "a.example", True),
        ([], False, "a.example", False),
        (["a.example"], False, "a.example", True),
        (["a.example"], True, "b.example", False),
        ([".example"], False, "a.example", True),
        ([".example"], False, "example", False),
        (["example"], False, "a.example", False),
    ],
)
def test_credentials_go_to_allowed_hosts_only(
    *,
    hosts: list[str],
    permit_unknown: bool,
    host: str,
    expected: bool,
) -> None:
    options = Options(
        image_server_auth_strategy="http_basic",
        image_server_user="user",
        image_server_password="p@ss/word",
        image_server_auth_hosts=hosts,
        image_server_auth_permit_unknown_hosts=permit_unknown,
    )
    for ref in (parse_ref(f"http://{host}:81/image"), parse_ref(f"https://other:one@{host}/image")):
        found = located(ref, options)
        assert expected == ("user:p%40ss%2Fword@" in found.location)
        assert ref.canonical == found.canonical
        assert "p%40ss" not in repr(found) + str(found)
    assert parse_ref("file:///x") == located(parse_ref("file:///x"), options)
    assert parse_ref(f"http://{host}/") == located(parse_ref(f"http://{host}/"), Options(image_server_user="user"))


def test_credentials_are_sent(site: Site) -> None:
    site.raw(credentials="user:p@ss/word")
    options = Options(image_server_auth_strategy="http_basic", image_server_user="user", image_server_password="p@ss/word")
    assert http_source(options).describe(located(parse_ref(site.href), options)).size
    with pytest.raises(underlay.errors.NotAuthorized):
        http_source(options).describe(parse_ref(site.href))


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (Options(image_server_auth_strategy="http_basic", image_server_password="secret"), "image_server_user"),
        (Options(image_server_auth_strategy="http_basic", image_server_user="user"), "image_server_password"),
    ],
)
def test_credentials_that_are_not_set_are_told_by_their_option(options: Options, missing: str) -> None:
    with raised("ImageRefValidationFailed") as error:
        located(parse_ref("http://host/image"), options)
    assert missing in str(error.value)
    assert "http://host/image" in str(error.value)


def test_certificates_and_time_outs_are_those_of_the_options(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    options = Options(webserver_verify_ca=os.fspath(file), webserver_verify_timeout=3, webserver_connection_timeout=7)
    source = http_source(options)
    assert (os.fspath(file), 3.0, 7.0, 0.0) == (
        source.web.ca_file, source.web.connect_timeout, source.web.read_timeout, source.revalidate_after
    )  # fmt: skip
    for text in ("True", "yes", "1", os.fspath(tmp_path / "missing.pem")):
        assert None is http_source(Options(webserver_verify_ca=text)).web.ca_file


@leases
def test_a_file_of_this_host_is_delivered_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(CONTENT)
    sources = sources_of(Options(file_url_allowed_paths=(os.fspath(tmp_path),)))
    version = sources["file"].describe(parse_ref(f"file://{tmp_path}/image"))
    assert (True, len(CONTENT)) == (version.no_store, version.size)
    with pytest.raises(ImageNotFound):
        sources["file"].describe(parse_ref(f"file://{tmp_path}/nothing"))
