"""Ironic's own code over our cache: what its callers ask for, what they get, and which of its exceptions arrive."""

import gzip
import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from ironic_environment import IRONIC, Ironic, running

from corpus import create
from underlay.openstack.ironic.exceptions import OURS
from underlay.testing.bootimage import write_qcow2, write_raw
from underlay.testing.httpserver import Served, Server, self_signed, serving

pytestmark = [pytest.mark.component("ironic"), pytest.mark.component("qemu-img")]

MIB = 1 << 20
PATH = "/a.img"
LONG_AGO = datetime(2024, 5, 17, 12, 30, 45, tzinfo=UTC)
GLANCE = "70a599e0-31e7-49b7-b260-868f441e862b"
NODE = "1be26c0b-03f2-4d2e-ae87-c02d7f33c123"
CONTENT = b"\x55" * 65536


@pytest.fixture(scope="module")
def ironic() -> Iterator[Ironic]:
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def replaced() -> Iterator[Ironic]:
    """An Ironic that has never had another image cache than ours."""
    with running(in_place=True) as one:
        yield one


@dataclass(frozen=True, slots=True)
class Site:
    """Attributes:
    root: a directory for all. server: a web server.
    """

    root: Path
    server: Server

    @property
    def href(self) -> str:
        return self.server.url(PATH)

    @property
    def masters(self) -> Path:
        return self.root / "masters"

    def path(self, name: str = "disk") -> Path:
        (self.root / "nodes").mkdir(exist_ok=True)
        return self.root / "nodes" / name

    def serve(self, body: bytes | Path = CONTENT, path: str = PATH, **how: Any) -> bytes:
        fields: dict[str, Any] = {"etag": '"1"', "last_modified": LONG_AGO} | how
        self.server.serve(path, Served(body, **fields))
        return body if isinstance(body, bytes) else body.read_bytes()

    def options(self, **more: Any) -> dict[str, Any]:
        """All directories of a conductor, below ours."""
        return {
            "tempdir": os.fspath(self.root),
            "pxe.instance_master_path": os.fspath(self.root / "instance_masters"),
            "pxe.tftp_master_path": os.fspath(self.root / "tftp_masters"),
            "deploy.iso_master_path": os.fspath(self.root / "iso_masters"),
            "pxe.images_path": os.fspath(self.root / "images"),
            "pxe.tftp_root": os.fspath(self.root / "tftp"),
            "deploy.http_root": os.fspath(self.root / "http"),
            **more,
        }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving({}) as server:
        yield Site(tmp_path, server)


def names_in(directory: Path) -> set[str]:
    return set(os.listdir(directory)) - {".underlay"}


def links(path: Path) -> int:
    return path.stat().st_nlink


# ------------------------------------------------------------------------------------------ deploy_utils.fetch_images over ours


@pytest.mark.parametrize("force_raw", [True, False])
def test_images_are_fetched_by_ironic_over_our_cache(ironic: Ironic, site: Site, *, force_raw: bool) -> None:
    write_qcow2(site.root / "a.qcow2", size=4 * MIB, message="an image")
    served = site.serve(site.root / "a.qcow2")
    expected = "raw" if force_raw else "qcow2"
    for name in ("one", "two"):
        answer = ironic.fetch_images("underlay", site.masters, [(site.href, site.path(name))], force_raw=force_raw)
        assert None is answer["error"], answer["traceback"]
        assert [[site.href, os.fspath(site.path(name)), expected]] == answer["result"]
    assert 1 == site.server.bodies(PATH)
    assert 3 == links(site.path("one"))
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, site.href))
    assert {f"{name}.converted" if force_raw else name} == names_in(site.masters)
    found = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", expected, site.path("one")]))
    assert 4 * MIB == found["virtual-size"]
    assert force_raw == (served != site.path("one").read_bytes())


def test_what_ironic_has_cached_is_used_by_us_and_what_we_have_cached_by_ironic(ironic: Ironic, site: Site) -> None:
    site.server.serve(PATH, Served(CONTENT, last_modified=LONG_AGO))
    for whose, name in (("underlay", "one"), ("ironic", "two")):
        answer = ironic.fetch_images(whose, site.masters, [(site.href, site.path(name))])
        assert None is answer["error"], answer["traceback"]
    assert 1 == site.server.bodies(PATH)
    assert site.path("one").samefile(site.path("two"))


def test_a_disabled_cache_works_with_us(ironic: Ironic, site: Site) -> None:
    content = site.serve()
    images = [(site.href, site.path())]
    assert "TypeError" == ironic.fetch_images("ironic", None, images)["error"]
    assert None is ironic.fetch_images("underlay", None, images)["error"]
    assert content == site.path().read_bytes()
    assert ["disk"] == os.listdir(site.path().parent)


@pytest.mark.component("root", "ext4")
def test_too_little_room_is_a_failed_deployment_with_our_reason(
    ironic: Ironic, site: Site, mounted: Callable[..., Path]
) -> None:
    room = mounted("ext4", 16 * MIB)
    site.serve(b"\x55" * (64 * MIB))
    answer = ironic.fetch_images("underlay", room / "masters", [(site.href, room / "disk")], options=site.options())
    assert "InstanceDeployFailure" == answer["error"]
    assert "64.0 MiB are needed" in answer["message"]
    assert 0 == site.server.bodies(PATH)


# -------------------------------------------------------------------------------------------------- exceptions, beside Ironic's


@dataclass(frozen=True, slots=True)
class Case:
    """A server's behaviour or a wish.

    Attributes:
        served: what the server answers; None: nothing is there. error: the exception of ours.
        theirs: Ironic's, where that is another.
        how: further arguments.
    """

    served: Served | None
    error: str | None
    theirs: str | None = None
    how: Mapping[str, Any] | None = None


DIGEST = hashlib.sha256(CONTENT).hexdigest()
CASES: Mapping[str, Case] = {
    "missing": Case(None, "ImageRefValidationFailed"),
    "forbidden": Case(Served(status=403), "ImageRefValidationFailed"),
    "unavailable": Case(Served(status=503), "ImageRefValidationFailed"),
    "cut": Case(Served(CONTENT, cut_after=100), "ImageDownloadFailed"),
    "another format": Case(Served(CONTENT), "InvalidImage", how={"expected_format": "qcow2"}),
    "wrong checksum": Case(
        Served(CONTENT), "ImageChecksumError", how={"expected_checksum": "0" * 64, "expected_checksum_algo": "sha256"}
    ),
    "unknown algorithm": Case(
        Served(CONTENT),
        "ImageChecksumAlgorithmFailure",
        how={"expected_checksum": "0" * 64, "expected_checksum_algo": "crc32"},
    ),
    "raw": Case(Served(CONTENT), None, how={"expected_format": "raw"}),
    "kernel": Case(Served(CONTENT), None, how={"expected_format": "aki"}),
    "right checksum": Case(Served(CONTENT), None, how={"expected_checksum": DIGEST, "expected_checksum_algo": "sha256"}),
    # Where Ironic does otherwise than it says: ironic.md B 22, B 27, E.
    "no head": Case(Served(CONTENT, head_status=405), None, "ImageRefValidationFailed"),
    "no length": Case(Served(CONTENT, chunked=True), None, "ImageRefValidationFailed"),
    "nothing in it": Case(Served(b"", head_length=0), "InvalidImage", "-"),
    "upper case": Case(
        Served(CONTENT),
        None,
        "ImageChecksumError",
        how={"expected_checksum": DIGEST.upper(), "expected_checksum_algo": "sha256"},
    ),
    "prefixed": Case(
        Served(CONTENT),
        None,
        "ImageChecksumError",
        how={"expected_checksum": f"sha256:{DIGEST}", "expected_checksum_algo": "sha256"},
    ),
    "bare": Case(Served(CONTENT), None, "ImageChecksumError", how={"expected_checksum": DIGEST}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_exception_is_ironic_s_own(ironic: Ironic, site: Site, name: str) -> None:
    case = CASES[name]
    if case.served is not None:
        site.server.serve(PATH, case.served)
    expected = {"underlay": case.error, "ironic": case.error if case.theirs is None else case.theirs.strip("-") or None}
    for whose in ("underlay", "ironic"):
        images = [(site.href, site.path(whose))]
        answer = ironic.fetch_images(whose, site.root / whose, images, force_raw=False, **(case.how or {}))
        assert expected[whose] == answer["error"], (whose, answer.get("traceback"))
        if answer["error"] is not None:
            assert "ironic.common.exception" == answer["module"]
            assert not site.path(whose).exists()
            assert set() == names_in(site.root / whose)
        else:
            assert site.path(whose).exists()


def test_nobody_listening_is_ironic_s_exception(ironic: Ironic, site: Site) -> None:
    for whose in ("underlay", "ironic"):
        answer = ironic.fetch_images(whose, site.root / whose, [("http://127.0.0.1:9/a.img", site.path())])
        assert "ImageRefValidationFailed" == answer["error"]


@pytest.mark.parametrize("href", ["ftp://host/image", "image", "nfs://host/image"])
def test_what_nothing_can_fetch_is_a_clean_error(ironic: Ironic, site: Site, href: str) -> None:
    answer = ironic.fetch_images("underlay", site.masters, [(href, site.path())])
    assert ("ImageRefValidationFailed", "ironic.common.exception") == (answer["error"], answer["module"])


def test_an_image_that_names_another_file_is_refused_as_by_ironic(ironic: Ironic, site: Site) -> None:
    write_raw(site.root / "base", size=MIB, message="secret")
    site.serve(create(site.root / "evil.qcow2", "qcow2", MIB, backing=site.root / "base"))
    for whose in ("underlay", "ironic"):
        answer = ironic.fetch_images(whose, site.root / whose, [(site.href, site.path(whose))])
        assert "InvalidImage" == answer["error"]
        assert (whose == "underlay") == ("backing" in answer["message"])


def test_every_exception_of_ours_is_one_of_ironic_s_and_derives_as_that_does(ironic: Ironic) -> None:
    answer = ironic.ask(
        do="meanings", names=["SourceRefused", "StorageFailed", "FormatMismatch", "ToolFailed", "InvalidDigest"]
    )
    expected = {
        "SourceRefused": "ImageRefValidationFailed",
        "StorageFailed": "ImageDownloadFailed",
        "FormatMismatch": "InvalidImage",
        "ToolFailed": "ImageConvertFailed",
        "InvalidDigest": "ImageChecksumError",
    }
    for name, theirs in expected.items():
        found = answer[name]
        assert (theirs, "ironic.common.exception") == (found["error"], found["module"])
        assert "our reason; our hint" in found["message"]
        assert "secret" not in found["message"] + json.dumps(found["arguments"])
        ours = [kind.__name__ for kind in OURS[theirs].__mro__]
        assert [kind for kind in found["kinds"] if kind in ours] == ours


# --------------------------------------------------------------------------------------------------------------------- options


def test_md5_is_refused_where_ironic_does_not_allow_it(ironic: Ironic, site: Site) -> None:
    site.serve()
    md5: dict[str, Any] = {"expected_checksum": hashlib.md5(CONTENT).hexdigest(), "expected_checksum_algo": "md5"}
    options = {"agent.allow_md5_checksum": False}
    images = [(site.href, site.path())]
    assert None is ironic.fetch_images("ironic", site.root / "ironic", images, options=options, **md5)["error"]
    requests = len(site.server.requests)
    answer = ironic.fetch_images("underlay", site.masters, images, options=options, **md5)
    assert "ImageChecksumAlgorithmFailure" == answer["error"]
    assert 0 == sum(request.method == "GET" for request in site.server.requests[requests:])
    assert None is ironic.fetch_images("underlay", site.masters, images, **md5)["error"]


def test_checksums_are_not_checked_where_ironic_does_not(ironic: Ironic, site: Site) -> None:
    site.serve()
    options = {"conductor.disable_file_checksum": True}
    images = [(site.href, site.path())]
    answer = ironic.fetch_images("underlay", site.masters, images, options=options, expected_checksum="0" * 64)
    assert None is answer["error"]


@pytest.mark.parametrize("expected", [None, "qcow2"])
def test_only_permitted_formats_are_taken(ironic: Ironic, site: Site, expected: str | None) -> None:
    write_qcow2(site.root / "a.qcow2", size=4 * MIB, message="an image")
    site.serve(site.root / "a.qcow2")
    options = {"conductor.permitted_image_formats": ["raw"]}
    for whose in ("ironic", "underlay"):
        images = [(site.href, site.path(whose))]
        answer = ironic.fetch_images(whose, site.root / whose, images, options=options, expected_format=expected)
        assert "InvalidImage" == answer["error"]
        assert set() == names_in(site.root / whose)
    site.serve()
    assert None is ironic.fetch_images("underlay", site.masters, [(site.href, site.path())], options=options)["error"]


def test_what_is_compressed_with_zstd_is_decompressed_unless_that_is_disabled(ironic: Ironic, site: Site) -> None:
    content = os.urandom(MIB)
    served = site.serve(zstandard.compress(content))
    checksum: dict[str, Any] = {"expected_checksum": hashlib.sha256(served).hexdigest(), "expected_checksum_algo": "sha256"}
    for whose in ("ironic", "underlay"):
        answer = ironic.fetch_images(whose, site.root / whose, [(site.href, site.path(whose))], **checksum)
        assert None is answer["error"], answer["traceback"]
        assert content == site.path(whose).read_bytes()
    options = {"conductor.disable_zstandard_decompression": True}
    for whose in ("ironic", "underlay"):
        images = [(site.href, site.path(f"{whose}-plain"))]
        answer = ironic.fetch_images(whose, site.root / f"{whose}-plain", images, options=options)
        assert None is answer["error"], answer["traceback"]
        assert served == site.path(f"{whose}-plain").read_bytes()


def test_what_is_compressed_with_gzip_is_not_decompressed(ironic: Ironic, site: Site) -> None:
    served = site.serve(gzip.compress(os.urandom(MIB)))
    for whose in ("ironic", "underlay"):
        answer = ironic.fetch_images(whose, site.root / whose, [(site.href, site.path(whose))])
        assert None is answer["error"], answer["traceback"]
        assert served == site.path(whose).read_bytes()


def test_without_deep_inspection_images_are_taken_as_they_are(ironic: Ironic, site: Site) -> None:
    write_raw(site.root / "base", size=MIB, message="secret")
    site.serve(create(site.root / "evil.qcow2", "qcow2", MIB, backing=site.root / "base"))
    options = {"conductor.disable_deep_image_inspection": True}
    for whose in ("ironic", "underlay"):
        images = [(site.href, site.path(whose))]
        answer = ironic.fetch_images(whose, site.root / whose, images, options=options, force_raw=False)
        assert None is answer["error"], answer["traceback"]
    images = [(site.href, site.path())]
    answer = ironic.fetch_images("underlay", site.masters, images, options=options, force_raw=True)
    assert "InvalidImage" == answer["error"]  # nothing is converted that was not inspected


def test_files_below_allowed_paths_are_delivered_and_not_kept(ironic: Ironic, site: Site) -> None:
    (site.root / "files").mkdir()
    (site.root / "files/image").write_bytes(CONTENT)
    (site.root / "files/link").symlink_to("/etc/hostname")
    options = {"conductor.file_url_allowed_paths": [os.fspath(site.root / "files")]}
    for name, error in (("image", None), ("link", "ImageRefValidationFailed"), ("../base", "ImageRefValidationFailed")):
        images = [(f"file://{site.root}/files/{name}", site.path(name.replace("/", "-")))]
        assert error == ironic.fetch_images("underlay", site.masters, images, options=options)["error"]
    assert CONTENT == site.path("image").read_bytes()
    assert set() == names_in(site.masters)
    assert not site.path("image").samefile(site.root / "files/image")  # who writes to it changes the source else


def test_credentials_are_sent_to_allowed_hosts(ironic: Ironic, site: Site) -> None:
    site.serve(credentials="user:p@ss")
    options = {
        "deploy.image_server_auth_strategy": "http_basic",
        "deploy.image_server_user": "user",
        "deploy.image_server_password": "p@ss",
    }
    images = [(site.href, site.path())]
    assert "ImageRefValidationFailed" == ironic.fetch_images("underlay", site.masters, images)["error"]
    others = {**options, "deploy.image_server_auth_hosts": ["elsewhere.example"]}
    for more, error in ((others, "ImageRefValidationFailed"), (options, None)):
        answer = ironic.fetch_images("underlay", site.masters, images, options=more)
        assert error == answer["error"], answer["traceback"]
        assert "p%40ss" not in json.dumps(answer)


def test_a_server_s_certificate_is_verified_as_ironic_says(ironic: Ironic, site: Site) -> None:
    certificate = self_signed(site.root)
    with serving({PATH: Served(CONTENT, last_modified=LONG_AGO)}, tls=certificate) as server:
        images = [(server.url(PATH), site.path())]
        for verify, error in (("True", "ImageRefValidationFailed"), (os.fspath(certificate.ca_file), None), ("False", None)):
            options = {"webserver_verify_ca": verify}
            answer = ironic.fetch_images("underlay", site.root / verify.strip("/"), images, options=options)
            assert error == answer["error"], answer["traceback"]
        bodies = server.bodies(PATH)
        answer = ironic.fetch_images("underlay", site.root / "False", images, options={"webserver_verify_ca": "False"})
        assert (None, bodies) == (answer["error"], server.bodies(PATH))
    assert CONTENT == site.path().read_bytes()


def test_a_transfer_waits_for_its_turn(ironic: Ironic, site: Site) -> None:
    for number in range(4):
        site.serve(CONTENT, f"/{number}", rate=len(CONTENT) * 4)
    images = [(site.server.url(f"/{number}"), os.fspath(site.path(str(number)))) for number in range(4)]
    cache = {"master_dir": os.fspath(site.masters), "cache_size": 1 << 40, "cache_ttl": 3600}
    options = {"image_download_concurrency": 1}
    answer = ironic.ask(do="fetch-many", whose="underlay", cache=cache, images=images, options=options, how={})
    assert [None] * 4 == [one["error"] for one in answer["answers"]]
    assert [CONTENT] * 4 == [Path(path).read_bytes() for _, path in images]


# ------------------------------------------------------------------------------------------------------------- image services


def serve_glance(site: Site, content: bytes, **image: Any) -> dict[str, Any]:
    """A stand-in for Glance with one image; the options that lead to it."""
    shown = {
        "id": GLANCE,
        "name": "image",
        "status": "active",
        "visibility": "public",
        "disk_format": "raw",
        "container_format": "bare",
        "size": len(content),
        "checksum": hashlib.md5(content).hexdigest(),
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(content).hexdigest(),
        "created_at": "2024-05-17T12:30:45Z",
        "updated_at": "2024-05-17T12:30:45Z",
        "min_disk": 0,
        "min_ram": 0,
        "owner": "x",
        "protected": False,
        "tags": [],
        **image,
    }
    as_json = {"Content-Type": "application/json"}
    version = {"id": "v2.9", "status": "CURRENT", "links": [{"rel": "self", "href": site.server.url("/v2/")}]}
    site.server.serve("/", Served(json.dumps({"versions": [version]}).encode(), headers=as_json))
    site.server.serve("/v2/", Served(json.dumps({"versions": [version]}).encode(), headers=as_json))
    site.server.serve(f"/v2/images/{GLANCE}", Served(json.dumps(shown).encode(), headers=as_json))
    site.server.serve(f"/v2/images/{GLANCE}/file", Served(content))
    return {"glance.auth_type": "none", "glance.endpoint_override": site.server.base}


def test_an_image_in_glance_comes_by_ironic_s_own_image_service(ironic: Ironic, site: Site) -> None:
    content = os.urandom(5 * MIB)
    options = serve_glance(site, content)
    for href, name in ((GLANCE, "one"), (f"glance://{GLANCE}", "two")):
        answer = ironic.fetch_images("underlay", site.masters, [(href, site.path(name))], options=options)
        assert None is answer["error"], answer["traceback"]
    assert content == site.path("two").read_bytes()
    assert {f"{GLANCE}.converted"} == names_in(site.masters)
    assert 1 == site.server.bodies(f"/v2/images/{GLANCE}/file")


def test_a_master_of_ironic_s_own_is_used_for_an_image_in_glance(ironic: Ironic, site: Site) -> None:
    options = serve_glance(site, CONTENT)
    for whose, name in (("ironic", "one"), ("underlay", "two"), ("ironic", "three")):
        answer = ironic.fetch_images(whose, site.masters, [(GLANCE, site.path(name))], options=options)
        assert None is answer["error"], answer["traceback"]
    assert 4 == links(site.path("three"))
    assert 1 == site.server.bodies(f"/v2/images/{GLANCE}/file")


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ({"os_hash_value": "0" * 128}, "ImageChecksumError"),
        ({"os_hash_value": None, "os_hash_algo": None, "checksum": "0" * 32}, "ImageChecksumError"),
        ({"disk_format": "qcow2"}, "InvalidImage"),
        ({"size": len(CONTENT) + 1}, "ImageDownloadFailed"),
        ({"size": len(CONTENT) - 1}, "ImageDownloadFailed"),
        ({"status": "queued"}, "ImageUnacceptable"),
    ],
    ids=["sha512", "md5", "format", "short", "long", "status"],
)
def test_what_glance_says_of_an_image_has_to_be_so(ironic: Ironic, site: Site, image: dict[str, Any], error: str) -> None:
    options = serve_glance(site, CONTENT, **image)
    answer = ironic.fetch_images("underlay", site.masters, [(GLANCE, site.path())], options=options)
    assert (error, "ironic.common.exception") == (answer["error"], answer["module"]), answer["traceback"]
    assert set() == names_in(site.masters)


def test_a_transfer_that_is_refused_as_it_begins_ends_at_once(ironic: Ironic, site: Site) -> None:
    options = serve_glance(site, os.urandom(64 * MIB), disk_format="qcow2")
    answer = ironic.fetch_images("underlay", site.masters, [(GLANCE, site.path())], options=options)
    assert "InvalidImage" == answer["error"], answer["traceback"]
    assert site.server.sent(f"/v2/images/{GLANCE}/file") < 32 * MIB


def test_an_image_that_glance_does_not_have_is_not_found(ironic: Ironic, site: Site) -> None:
    options = serve_glance(site, CONTENT)
    site.server.withdraw(f"/v2/images/{GLANCE}")
    for whose in ("underlay", "ironic"):
        answer = ironic.fetch_images(whose, site.root / whose, [(GLANCE, site.path())], options=options)
        assert ("ImageNotFound", "ironic.common.exception") == (answer["error"], answer["module"])


def test_a_transfer_from_glance_that_breaks_off_is_a_failed_download_and_can_be_tried_again(ironic: Ironic, site: Site) -> None:
    content = os.urandom(3 * MIB)
    options = serve_glance(site, content)
    site.server.serve(f"/v2/images/{GLANCE}/file", [Served(content, cut_after=MIB), Served(content)])
    images = [(GLANCE, site.path())]
    assert "ImageDownloadFailed" == ironic.fetch_images("underlay", site.masters, images, options=options)["error"]
    assert set() == names_in(site.masters)
    assert None is ironic.fetch_images("underlay", site.masters, images, options=options)["error"]
    assert content == site.path().read_bytes()


def test_a_direct_file_of_glance_s_comes_whole(ironic: Ironic, site: Site) -> None:
    content = os.urandom(3 * MIB)
    (site.root / "image").write_bytes(content)
    options = serve_glance(site, content, direct_url=f"file://{site.root}/image")
    options["glance.allowed_direct_url_schemes"] = ["file"]
    answer = ironic.fetch_images("underlay", site.masters, [(GLANCE, site.path())], options=options)
    assert None is answer["error"], answer["traceback"]
    assert content == site.path().read_bytes()


def serve_registry(site: Site, content: bytes, **how: Any) -> str:
    """A stand-in for a container registry with one artifact; its href."""
    blob = "sha256:" + hashlib.sha256(content).hexdigest()
    layer = {"mediaType": "application/zstd", "digest": blob, "size": len(content)}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.unknown.artifact.v1",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:" + "0" * 64, "size": 2},
            "layers": [layer],
        }
    ).encode()
    digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
    kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
    site.server.serve(f"/v2/repo/image/manifests/{digest}", Served(manifest, headers=kind, **how))
    site.server.serve(f"/v2/repo/image/blobs/{blob}", Served(content, **how))
    return f"oci://{site.server.base.removeprefix('http://')}/repo/image@{digest}"


def test_an_artifact_in_a_registry_comes_by_ironic_s_own_image_service(ironic: Ironic, site: Site) -> None:
    content = os.urandom(MIB)
    href = serve_registry(site, content)
    options = {"oci.permit_fallback_to_http_transport": True}
    for name in ("one", "two"):
        answer = ironic.fetch_images("underlay", site.masters, [(href, site.path(name))], options=options)
        assert None is answer["error"], answer["traceback"]
    assert content == site.path("two").read_bytes()
    assert {f"{uuid.uuid5(uuid.NAMESPACE_URL, href)}.converted"} == names_in(site.masters)
    assert 1 == sum("/blobs/" in request.path and request.method == "GET" for request in site.server.requests)


def test_credentials_reach_a_registry(ironic: Ironic, site: Site) -> None:
    href = serve_registry(site, CONTENT, credentials="user:secret")
    site.server.serve("/v2/", Served(b"{}", credentials="user:secret"))
    options = {"oci.permit_fallback_to_http_transport": True}
    images = [(href, site.path())]
    assert "ironic.common.exception" == ironic.fetch_images("underlay", site.masters, images, options=options)["module"]
    assert set() == names_in(site.masters)
    auth = {"username": "user", "password": "secret"}
    answer = ironic.fetch_images("underlay", site.masters, images, options=options, image_auth_data=auth)
    assert None is answer["error"], answer["traceback"]
    assert CONTENT == site.path().read_bytes()
    assert "secret" not in json.dumps(answer)


def test_a_tag_alone_is_not_specific(ironic: Ironic, site: Site) -> None:
    answer = ironic.fetch_images("underlay", site.masters, [("oci://localhost:1/repo/image:latest", site.path())])
    assert ("OciImageNotSpecific", "ironic.common.exception") == (answer["error"], answer["module"])


# ----------------------------------------------------------------------------------------------------------- lists of checksums


def test_a_file_of_checksums_is_read_where_ironic_reads_one(ironic: Ironic, site: Site) -> None:
    site.serve(f"{'0' * 64}  aXimg\n{DIGEST}  a.img\n".encode(), "/SUMS")
    info = {"image_checksum": site.server.url("/SUMS"), "image_source": site.href}
    assert ["0" * 64, "sha256"] == ironic.ask(do="checksum", whose="ironic", instance_info=info)["result"]
    checksum, _ = ironic.ask(do="checksum", whose="underlay", instance_info=info)["result"]
    assert f"sha256:{DIGEST}" == checksum
    site.serve()
    images = [(site.href, site.path())]
    answer = ironic.fetch_images("underlay", site.masters, images, expected_checksum=checksum)
    assert None is answer["error"], answer["traceback"]
    options = {"conductor.disable_support_for_checksum_files": True}
    how: dict[str, Any] = {"expected_checksum": site.server.url("/SUMS"), "options": options}
    assert "ImageChecksumURLNotSupported" == ironic.fetch_images("underlay", site.masters, images, **how)["error"]


# ------------------------------------------------------------------------------------------------- in the place of Ironic's own


def test_in_the_place_of_ironic_s_module_its_caches_are_ours_and_each_directory_is_cleaned_up_once(
    replaced: Ironic, site: Site
) -> None:
    answer = replaced.ask(do="registered", options=site.options())
    assert ("underlay.openstack.ironic", True) == (answer["module"], answer["derived"])
    assert ["ISOImageCache", "InstanceImageCache", "TFTPImageCache"] == answer["cleaned"]
    assert [75, 75, 50, 50, 25, 25] == [priority for priority, _ in answer["ours"]]


@pytest.mark.component("leases")
def test_an_instance_is_deployed_and_destroyed(replaced: Ironic, site: Site) -> None:
    content = site.serve()
    options = site.options(**{"pxe.image_cache_size": 0})
    ask: dict[str, Any] = {"do": "instance", "node": NODE, "href": site.href, "options": options, "how": {}}
    answer = replaced.ask(**ask)
    disk = site.root / "images" / NODE / "disk"
    assert [site.href, os.fspath(disk), "raw"] == answer["result"], answer.get("traceback")
    assert content == disk.read_bytes()
    assert 2 == links(disk)
    assert None is replaced.ask(**ask, destroy=True)["error"]
    assert not disk.exists()
    assert set() == names_in(site.root / "instance_masters")


def test_a_kernel_and_an_iso_are_fetched_as_they_are(replaced: Ironic, site: Site) -> None:
    content = site.serve(b"\x1f\x8b\x08 an initial ramdisk" * 100)
    kernel = site.root / "tftp" / NODE / "deploy_kernel"
    answer = replaced.ask(do="kernel", node=NODE, image=[site.href, os.fspath(kernel)], options=site.options())
    assert None is answer["error"], answer["traceback"]
    assert (content, 2) == (kernel.read_bytes(), links(kernel))
    answer = replaced.ask(do="iso", href=site.href, path=os.fspath(site.path()), options=site.options())
    assert None is answer["error"], answer["traceback"]
    assert (content, 2) == (site.path().read_bytes(), links(site.path()))
    options = site.options(**{"deploy.iso_master_path": "", "pxe.tftp_master_path": ""})
    assert None is replaced.ask(do="iso", href=site.href, path=os.fspath(site.path("iso")), options=options)["error"]
    assert (content, 1) == (site.path("iso").read_bytes(), links(site.path("iso")))
    other = site.root / "tftp" / NODE / "other"
    assert None is replaced.ask(do="kernel", node=NODE, image=[site.href, os.fspath(other)], options=options)["error"]
    assert (content, 1) == (other.read_bytes(), links(other))


@pytest.mark.component("leases")
@pytest.mark.parametrize(
    ("directory", "sizes", "ages"),
    [
        ("instance_masters", "pxe.image_cache_size", "pxe.image_cache_ttl"),
        ("tftp_masters", "pxe.image_cache_size", "pxe.image_cache_ttl"),
        ("iso_masters", "deploy.iso_cache_size", "deploy.iso_cache_ttl"),
    ],
)
def test_the_periodic_task_cleans_up_by_mib_and_minutes(
    replaced: Ironic, site: Site, directory: str, sizes: str, ages: str
) -> None:
    masters = site.root / directory
    masters.mkdir()
    names = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))) for number in range(3)]
    now = datetime.now(UTC).timestamp()
    for name, minutes in zip(names, (9, 4, 3), strict=True):
        (masters / name).write_bytes(os.urandom(MIB))
        os.utime(masters / name, (now - 60 * minutes - 5,) * 2)
    assert None is replaced.ask(do="periodic", options=site.options(**{ages: 5}))["error"]
    assert set(names[1:]) == names_in(masters)
    assert None is replaced.ask(do="periodic", options=site.options(**{sizes: 1}))["error"]
    assert set(names[2:]) == names_in(masters)


def test_the_guide_s_program_puts_our_module_in_the_place_of_ironic_s(site: Site) -> None:
    guide = (Path(__file__).parents[3] / "docs/guides/ironic-drop-in.md").read_text(encoding="utf-8")
    program = guide.partition("```python\n")[2].partition("```")[0]
    assert "sys.modules" in program
    put, _, _ = program.partition("from ironic.command")
    check = """
from ironic.drivers.modules import deploy_utils, image_utils
from ironic.common import pxe_utils
from underlay.openstack.ironic import ImageCache
for kind in (deploy_utils.InstanceImageCache, image_utils.ISOImageCache, pxe_utils.TFTPImageCache):
    assert issubclass(kind, ImageCache), kind
assert deploy_utils.image_cache is image_utils.image_cache is sys.modules["underlay.openstack.ironic"]
import ironic.conductor.manager
assert ironic.conductor.manager.image_cache is deploy_utils.image_cache
print("in place")
"""
    environment = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[3] / "src"), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run([IRONIC.python(), "-c", put + check], capture_output=True, text=True, env=environment, check=False)
    assert "in place\n" == ended.stdout, ended.stderr
    version = subprocess.run(
        [IRONIC.python(), "-c", program, "--version"], capture_output=True, text=True, env=environment, check=False
    )
    assert "39.0.0" in version.stdout, version.stderr


# --------------------------------------------------------------------------------------------------------------- many at a time


def test_one_transfer_serves_several_conductors(site: Site) -> None:
    content = site.serve(os.urandom(4 * MIB), rate=8 * MIB)
    with ExitStack() as stack:
        conductors = [stack.enter_context(running()) for _ in range(3)]
        pool = stack.enter_context(ThreadPoolExecutor(3))

        def fetch(numbered: tuple[int, Ironic]) -> Any:
            number, one = numbered
            return one.fetch_images("underlay", site.masters, [(site.href, site.path(str(number)))])

        site.path()
        answers = list(pool.map(fetch, enumerate(conductors)))
    assert [None] * 3 == [answer["error"] for answer in answers]
    assert [content] * 3 == [site.path(str(number)).read_bytes() for number in range(3)]
    assert 1 == site.server.bodies(PATH)
    assert 4 == links(site.path("0"))


@pytest.mark.component("leases")
@pytest.mark.parametrize("size", [0, 1 << 30])
def test_many_threads_fail_no_fetch_however_small_the_cache_is(ironic: Ironic, site: Site, size: int) -> None:
    contents = {f"/{number}": os.urandom(50_000) for number in range(24)}
    for path, content in contents.items():
        site.serve(content, path)
    images = [(site.server.url(path), os.fspath(site.path(path[1:]))) for path in contents]
    cache = {"master_dir": os.fspath(site.masters), "cache_size": size, "cache_ttl": size}
    for _ in range(3):
        answer = ironic.ask(do="fetch-many", whose="underlay", cache=cache, images=images, how={})
        assert [None] * 24 == [one["error"] for one in answer["answers"]]
        assert all(content == site.path(path[1:]).read_bytes() for path, content in contents.items())
    assert [1] * 24 == [site.server.bodies(path) for path in contents]
    assert [2] * 24 == [links(Path(path)) for _, path in images]
