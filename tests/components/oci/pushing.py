"""What is pushed to a registry in tests: artifacts, containerdisks and indexes, made here piece by piece, good and bad."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import urllib3
import zstandard

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
DOCKER_TAR_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DISK = "application/x-qemu-disk"
TITLE = "org.opencontainers.image.title"

Document = dict[str, Any]
_NOTHING: Mapping[str, str] = MappingProxyType({})


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def described(media_type: str, content: bytes, **more: Any) -> Document:
    """A descriptor of content."""
    return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}


def artifact(*layers: Document) -> Document:
    """A manifest of layers that are files, as ORAS pushes them."""
    config = described(OCI_EMPTY, b"{}")
    kind = "application/vnd.underlay.test"
    return {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "config": config, "layers": list(layers)}


def image(*layers: Document, config: Document | None = None, media_type: str = OCI_MANIFEST) -> Document:
    """A manifest of a container image; the lowest layer first."""
    config = config or described(OCI_CONFIG, CONFIG)
    return {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": list(layers)}


def index(*manifests: Document) -> Document:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests)}


CONFIG = json.dumps(
    {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {}}
).encode()


def encoded(document: Document) -> bytes:
    return json.dumps(document).encode()


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive of entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def file_entry(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    """A file as KubeVirt wants it: of QEMU's user."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.uid, entry.gid = len(content), 0o440, 107, 107
    return entry, content


def other_entry(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """A directory, a link or a device."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, target, 0o555
    return entry, b""


def disk_layer(content: bytes, name: str = "disk.img", *, compression: str = "") -> bytes:
    """A layer with a disk, in plain, gzip or zstd."""
    packed = tar_of(other_entry("disk", tarfile.DIRTYPE), file_entry(f"disk/{name}", content))
    if compression == "gzip":
        return gzip.compress(packed, 1, mtime=0)
    return zstandard.compress(packed, 1) if compression == "zstd" else packed


@dataclass(frozen=True, slots=True)
class Pusher:
    """Pushes to one repository of a registry."""

    url: str
    repository: str
    headers: Mapping[str, str] = field(default_factory=dict)
    _pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(timeout=30))

    def blob(self, media_type: str, content: bytes, **more: Any) -> Document:
        """Push a blob; its descriptor."""
        begun = self._request("POST", f"{self.url}/v2/{self.repository}/blobs/uploads/", 202)
        location = begun.headers["Location"]
        place = f"{location}{'&' if '?' in location else '?'}digest={digest(content)}"
        self._request("PUT", place, 201, content, {"Content-Type": "application/octet-stream"})
        return described(media_type, content, **more)

    def manifest(self, reference: str, document: Document) -> str:
        """Push a manifest or an index; its digest."""
        content = encoded(document)
        self._request("PUT", self._manifest(reference), 201, content, {"Content-Type": document["mediaType"]})
        return digest(content)

    def artifact(self, tag: str, content: bytes, *, title: str | None = "disk.img", media_type: str = DISK) -> str:
        """Push a disk as an artifact; the manifest's digest."""
        self.blob(OCI_EMPTY, b"{}")
        more = {} if title is None else {"annotations": {TITLE: title}}
        return self.manifest(tag, artifact(self.blob(media_type, content, **more)))

    def containerdisk(self, tag: str, *layers: bytes, media_type: str = OCI_TAR) -> str:
        """Push layers, the lowest first, as a container image; the manifest's digest."""
        self.blob(OCI_CONFIG, CONFIG)
        return self.manifest(tag, image(*(self.blob(media_type, layer) for layer in layers)))

    def remove_manifest(self, reference: str) -> None:
        """Remove a manifest and its tags by its digest."""
        self._request("DELETE", self._manifest(reference), 202)

    def remove_blob(self, blob: str) -> None:
        """Remove a blob from the repository."""
        self._request("DELETE", f"{self.url}/v2/{self.repository}/blobs/{blob}", 202)

    def layers(self, reference: str) -> Sequence[Document]:
        """The layers of a manifest."""
        answer = self._request("GET", self._manifest(reference), 200, headers={"Accept": OCI_MANIFEST})
        return list(json.loads(answer.data)["layers"])

    def _manifest(self, reference: str) -> str:
        return f"{self.url}/v2/{self.repository}/manifests/{reference}"

    def _request(
        self, method: str, url: str, status: int, content: bytes = b"", headers: Mapping[str, str] = _NOTHING
    ) -> urllib3.BaseHTTPResponse:
        answer = self._pool.request(method, url, body=content, headers={**self.headers, **headers})
        assert status == answer.status, (method, url, answer.status, answer.data[:500])
        return answer
