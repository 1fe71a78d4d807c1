"""Real object stores with a bucket each: what a test puts there, replaces, takes away and forbids, by their own APIs."""

import base64
import hashlib
import hmac
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import parse_qsl, quote, urlencode
from xml.etree import ElementTree

import urllib3
from azurite_environment import program as azurite
from gcs_environment import program as fake_gcs

from underlay.sources.objects.access import AzureAccess, GcsAccess, Keys, S3Access
from underlay.sources.objects.source import ObjectSource

PATIENCE = 60.0
KEYS = Keys(access_key_id="admin", secret_access_key="geheim")
AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's, the same everywhere and public.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

# moto asks no more of a request than who it is from, unless a test has it check the signatures.
_ADMIN = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=admin/20240517/us-east-1/{}/aws4_request, SignedHeaders=host, Signature=0"
}
_MANY = str(1 << 40)


def call(
    method: str, url: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None, accept: Sequence[int] = ()
) -> urllib3.BaseHTTPResponse:
    """The service's answer; an error of it is one of the test's."""
    answer = urllib3.request(method, url, body=body, headers=dict(headers or {}), timeout=PATIENCE, retries=False)
    assert answer.status < 300 or answer.status in accept, (answer.status, answer.data)
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Place:
    """A bucket on an S3 server, readable by all."""

    url: str
    bucket: str

    @property
    def access(self) -> S3Access:
        """How a source asks there, with keys."""
        return S3Access(endpoint=self.url, region="us-east-1", allow_http=True, keys=KEYS, machine_credentials=False)

    @property
    def source(self) -> ObjectSource:
        """A source that asks there, with keys."""
        return ObjectSource(s3=self.access)

    def ref(self, key: str) -> str:
        return f"s3://{self.bucket}/{quote(key)}"

    def put(self, key: str, content: bytes, **headers: str) -> str | None:
        """Put or replace an object; the version that the server gave it, if any."""
        given = {"x-amz-acl": "public-read"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self._call("PUT", key, body=content, headers=given).headers.get("x-amz-version-id")

    def put_in_parts(self, key: str, parts: Sequence[bytes]) -> None:
        begun = self._call("POST", key, query="?uploads").data
        upload = ElementTree.fromstring(begun).findtext("{*}UploadId")
        done = ""
        for number, part in enumerate(parts, 1):
            etag = self._call("PUT", key, query=f"?partNumber={number}&uploadId={upload}", body=part).headers["ETag"]
            done += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        whole = f"<CompleteMultipartUpload>{done}</CompleteMultipartUpload>".encode()
        self._call("POST", key, query=f"?uploadId={upload}", body=whole)

    def withdraw(self, key: str, *, version: str | None = None) -> None:
        """Remove an object; where the bucket keeps versions, what is there now, or one of them for good."""
        self._call("DELETE", key, query="" if version is None else f"?versionId={quote(version, safe='')}")

    def forbid(self, key: str) -> None:
        """Let nobody read it who has no keys."""
        self._call("PUT", key, query="?acl", headers={"x-amz-acl": "private"})

    def keep_versions(self, status: str = "Enabled") -> None:
        body = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>".encode()
        self._call("PUT", "", query="?versioning", body=body)

    def _call(
        self, method: str, key: str, *, query: str = "", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        admin = {name: value.format("s3") for name, value in _ADMIN.items()}
        url = f"{self.url}/{self.bucket}/{quote(key)}{query}"
        return call(method, url, body=body, headers=admin | dict(headers or {}))


def s3_place(url: str, bucket: str) -> S3Place:
    place = S3Place(url=url, bucket=bucket)
    place._call("PUT", "")
    return place


def s3_user(url: str, name: str, *, reads: str | None) -> Keys:
    """A user of the S3 server, who may read the objects of one bucket, or nothing."""
    _ask_iam(url, Action="CreateUser", UserName=name)
    made = ElementTree.fromstring(_ask_iam(url, Action="CreateAccessKey", UserName=name))
    if reads is not None:
        policy = (
            '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:Get*", '
            f'"Resource": "arn:aws:s3:::{reads}/*"}}}}'
        )
        _ask_iam(url, Action="PutUserPolicy", UserName=name, PolicyName="reads", PolicyDocument=policy)
    key, secret = (made.findtext(f".//{{*}}{word}") or "" for word in ("AccessKeyId", "SecretAccessKey"))
    return Keys(access_key_id=key, secret_access_key=secret)


def _ask_iam(url: str, **question: str) -> bytes:
    headers = {name: value.format("iam") for name, value in _ADMIN.items()}
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    return call("POST", url, body=urlencode({"Version": "2010-05-08", **question}).encode(), headers=headers).data


@contextmanager
def signatures_checked(url: str) -> Iterator[None]:
    """The S3 server checks every signature, and what its user may do, until the end of the context."""
    call("POST", f"{url}/moto-api/reset-auth", body=b"0")
    try:
        yield
    finally:
        call("POST", f"{url}/moto-api/reset-auth", body=_MANY.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsPlace:
    """A bucket on a server of Google's API. It knows no credentials and forbids nothing."""

    url: str
    bucket: str

    @property
    def access(self) -> GcsAccess:
        return GcsAccess(endpoint=self.url, allow_http=True, anonymous=True)

    @property
    def source(self) -> ObjectSource:
        return ObjectSource(gs=self.access)

    def ref(self, key: str) -> str:
        return f"gs://{self.bucket}/{quote(key)}"

    def put(self, key: str, content: bytes) -> str:
        """Put or replace an object; its generation."""
        name = quote(key, safe="")
        url = f"{self.url}/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={name}"
        return str(call("POST", url, body=content, headers={"Content-Type": "application/octet-stream"}).json()["generation"])

    def withdraw(self, key: str) -> None:
        call("DELETE", f"{self.url}/storage/v1/b/{self.bucket}/o/{quote(key, safe='')}")


@contextmanager
def gcs_place(
    bucket: str, *, keeps_versions: bool = False, port: int | None = None, public_host: str | None = None
) -> Iterator[GcsPlace]:
    """A bucket on a server of its own, which is ended afterwards.

    Args:
        public_host: the one name, with its port, by which the server serves objects; None: its own.
    """
    port = port or free_port()  # asked for any port, it does not say which one it got
    public_host = public_host or f"127.0.0.1:{port}"
    listens = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", public_host]
    argv = [os.fspath(fake_gcs()), "-backend", "memory", *listens]
    with _listening(argv, r"server started at (http://127\.0\.0\.1:\d+)") as url:
        versioning = "true" if keeps_versions else "false"
        body = f'{{"name": "{bucket}", "versioning": {{"enabled": {versioning}}}}}'.encode()
        call("POST", f"{url}/storage/v1/b?project=tests", body=body, headers={"Content-Type": "application/json"})
        yield GcsPlace(url=url, bucket=bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzurePlace:
    """A container in Azurite."""

    url: str
    bucket: str

    @property
    def access(self) -> AzureAccess:
        return AzureAccess(endpoint=self.url, account=AZURE_ACCOUNT, key=AZURE_KEY, allow_http=True)

    @property
    def source(self) -> ObjectSource:
        return ObjectSource(az=self.access)

    def ref(self, key: str) -> str:
        return f"az://{self.bucket}/{quote(key)}"

    def put(self, key: str, content: bytes) -> None:
        headers = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"}
        self.call("PUT", f"/{self.bucket}/{quote(key)}", body=content, headers=headers)

    def withdraw(self, key: str) -> None:
        self.call("DELETE", f"/{self.bucket}/{quote(key)}")

    def call(
        self, method: str, path: str, *, query: str = "", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """A request that is signed with the account's key ("Authorize with Shared Key" in Azure's REST reference)."""
        ours = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"} | dict(headers or {})
        kind = ours.get("Content-Type", "")
        length = str(len(body)) if body else ""
        named = "".join(f"{name}:{ours[name]}\n" for name in sorted(ours) if name.startswith("x-ms-"))
        asked = "".join(f"\n{name}:{value}" for name, value in sorted(parse_qsl(query)))
        what = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}{path}{asked}"
        text = f"{method}\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{named}{what}"
        signature = base64.b64encode(hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()).decode()
        ours["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{signature}"
        call(method, f"{self.url}{path}" + (f"?{query}" if query else ""), body=body, headers=ours)


@contextmanager
def azure_place(container: str) -> Iterator[AzurePlace]:
    """A container in an Azurite of its own, which is ended afterwards."""
    argv = [os.fspath(azurite()), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry"]
    with _listening([*argv, "--skipApiVersionCheck"], r"successfully listens on (http://127\.0\.0\.1:\d+)") as url:
        place = AzurePlace(url=f"{url}/{AZURE_ACCOUNT}", bucket=container)
        place.call("PUT", f"/{container}", query="restype=container")
        yield place


def free_port() -> int:
    """One on which nobody listens yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _listening(argv: Sequence[str], says: str) -> Iterator[str]:
    """A program that says where it listens, ended afterwards: what the pattern's group found."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as log:
        with subprocess.Popen(argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
            try:
                yield _heard(process, log.fileno(), says)
            finally:
                process.kill()


def _heard(process: subprocess.Popen[bytes], log: int, says: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        said = os.pread(log, 1 << 16, 0).decode()
        if found := re.search(says, said):
            return found[1]
        assert process.poll() is None, said
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} did not begin to listen")
