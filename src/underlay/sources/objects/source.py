"""Buckets as a source. What was described is asked for by its version and its ETag, so that two versions are never mixed."""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from underlay.contracts import ByteStream
from underlay.errors import BodyTruncated, ImageNotFound, NotAuthorized, SourceChanged, SourceRefused
from underlay.model import ImageRef, ImageVersion
from underlay.naming import content_version_id
from underlay.once import FileStamp, Once, file_stamp
from underlay.refs import object_name
from underlay.sources.objects.access import AzureAccess, GcsAccess, S3Access
from underlay.sources.objects.failures import failures, is_unexplained, translated
from underlay.sources.objects.stores import Bucket, check_process, library, open_azure, open_gcs, open_s3
from underlay.web import Web
from underlay.web.pace import Pace

_ETAG = "etag:"  # how validators begin, as those of web servers do
_UNVERSIONED = "null"  # S3's version of an object in a bucket that keeps none: replaced in its place
_NOT_CODED = frozenset({"", "identity", "aws-chunked"})  # the last is how a body came, which some services keep as its coding
_PIECE = 1  # bytes that are waited for: each piece is taken as it comes, so that a trickle is seen


@dataclass(frozen=True, slots=True)
class _Opened:
    """A bucket, and what its files of credentials were when it was opened."""

    bucket: Bucket
    files: FileStamp


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSource:
    """Buckets of S3, of Google Cloud Storage and of Azure.

    A bucket is opened once, and anew when a file of its credentials changes or the service refuses them: keys that are renewed
    in a file are used with the next request. A process that was forked from one that has asked cannot ask (`check_process`).

    Attributes:
        web: whose time-outs, proxies and certificates hold here as well, although the library makes the requests.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"s3", "gs", "az"})
    revalidate_after: float = 300.0
    stale_if_error: bool = True
    s3: S3Access = field(default_factory=S3Access)
    gs: GcsAccess = field(default_factory=GcsAccess)
    az: AzureAccess = field(default_factory=AzureAccess)
    web: Web = field(default_factory=Web)
    _buckets: Once[_Opened] = field(default_factory=Once, init=False, repr=False, compare=False)

    def fixed_id(self, ref: ImageRef) -> str | None:
        """The version that the ref names, for it never changes; None for what is there now."""
        version = object_name(ref).version
        return None if version is None or _is_replaced(ref, version) else _version_id(ref, version)

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The version that the ref names, else the ref and its content's digest."""
        return self.fixed_id(ref) or content_version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the bucket has now, or what the named version is; the ETag is the validator where it is a strong one.

        The id is the version's where the service numbers the versions, so the same version has one id by whatever ref. An ETag
        is never taken for a digest: that of an object which came in parts is none (S3's API reference, Object).

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, UntrustedCertificate, SourceUnavailable
        """
        found = self._found(ref)
        _check_coding(ref, found.attributes)
        version = found.meta["version"] or object_name(ref).version
        return ImageVersion(
            ref=ref,
            id=None if version is None or _is_replaced(ref, version) else _version_id(ref, version),
            size=found.meta["size"],
            validator=_validator(found.meta),
            no_store="no-store" in found.attributes.get("Cache-Control", "").lower(),
        )

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """The object's bytes from ``offset`` on.

        Raises:
            as `describe`; SourceChanged when the object is another one by now.
        """
        try:
            with self._asking(version.ref) as bucket:
                found = _asked(version.ref, bucket, _question(version, offset))
        except ImageNotFound:
            self._check_still_there(version)
            raise
        if _is_other(version, found.meta):
            raise SourceChanged(f"{version.ref} changed after it was described", hint="try again")
        if offset and offset == version.size:
            yield io.BytesIO()
            return
        _check_coding(version.ref, found.attributes)
        pieces = iter(found.stream(min_chunk_size=_PIECE))
        left = found.range[1] - found.range[0]
        pace = Pace(str(version.ref), bucket.where, self.web.low_speed_limit, self.web.low_speed_time)
        yield _ObjectStream(version.ref, bucket, pieces, left, pace)

    def _found(self, ref: ImageRef) -> Any:
        version = object_name(ref).version
        with self._asking(ref) as bucket:
            try:
                return _asked(ref, bucket, {"head": True, "version": version})
            except failures() as error:
                if not is_unexplained(error):
                    raise
            # A HEAD is refused without a word of why (RFC 9110, 9.3.2), so the first byte is asked for.
            return _asked(ref, bucket, {"range": (0, 1), "version": version})

    def _check_still_there(self, version: ImageVersion) -> None:
        """Tell an object that was replaced from one that was removed."""
        now = self.describe(version.ref)
        if (now.id, now.validator, now.size) != (version.id, version.validator, version.size):
            raise SourceChanged(f"{version.ref} changed after it was described", hint="try again")

    @contextmanager
    def _asking(self, ref: ImageRef) -> Iterator[Bucket]:
        """The bucket, opened once for as long as the files of its credentials stay as they are and nobody refuses them."""
        check_process(str(ref))
        key, files = (ref.scheme, object_name(ref).bucket), file_stamp(self._files(ref.scheme))
        opened = self._buckets.get(key, lambda: _Opened(self._bucket(ref), files), holds=lambda one: one.files == files)
        try:
            with translated(ref, opened.bucket):
                yield opened.bucket
        except NotAuthorized:
            self._buckets.drop(key, opened)
            raise

    def _files(self, scheme: str) -> Sequence[Path]:
        credentials = {"s3": self.s3.files, "gs": (self.gs.credentials_file,)}.get(scheme, ())
        authority = None if self.web.ca_file is None else Path(self.web.ca_file)
        return [file for file in (*credentials, authority) if file is not None]

    def _bucket(self, ref: ImageRef) -> Bucket:
        name = object_name(ref).bucket
        try:
            if ref.scheme == "s3":
                return open_s3(name, self.s3, self.web)
            return open_gcs(name, self.gs, self.web) if ref.scheme == "gs" else open_azure(name, self.az, self.web)
        except (NotAuthorized, SourceRefused) as error:
            raise type(error)(f"{ref}: {error}", hint=error.hint) from error


@dataclass(slots=True)
class _ObjectStream:
    """A body as it comes, with a look at its pace."""

    ref: ImageRef
    bucket: Bucket
    pieces: Iterator[bytes]
    left: int
    pace: Pace
    _piece: memoryview = field(default_factory=lambda: memoryview(b""))

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._piece:
            self._piece = memoryview(self._next())
        length = min(len(buffer), len(self._piece))
        buffer[:length] = self._piece[:length]
        self._piece = self._piece[length:]
        return length

    def _next(self) -> bytes:
        check_process(str(self.ref))
        asked = time.monotonic()
        with translated(self.ref, self.bucket):
            piece = next(self.pieces, b"")
        self.left -= len(piece)
        if not piece and self.left > 0:
            raise BodyTruncated(f"{self.ref}: the body ended {self.left} bytes before its announced length", hint="try again")
        self.pace.check(len(piece), time.monotonic() - asked)
        return piece


def _asked(ref: ImageRef, bucket: Bucket, options: Mapping[str, Any]) -> Any:
    given = {option: value for option, value in options.items() if value is not None}
    return library().get(bucket.store, object_name(ref).key, options=given)


def _question(version: ImageVersion, offset: int) -> dict[str, Any]:
    asked = {"version": _asked_version(version), "if_match": _etag(version)}
    if offset and offset == version.size:
        return {**asked, "head": True}  # no service serves the range behind the last byte
    return {**asked, "range": {"offset": offset}} if offset else asked


def _version_id(ref: ImageRef, version: str) -> str:
    return f"{ref.canonical.partition('?')[0]}#{quote(version, safe='')}"


def _asked_version(version: ImageVersion) -> str | None:
    """The version that the description's id names, else the one that its ref names."""
    return object_name(version.ref).version if version.id is None else unquote(version.id.rpartition("#")[2])


def _is_replaced(ref: ImageRef, version: str) -> bool:
    return ref.scheme == "s3" and version == _UNVERSIONED


def _validator(meta: Mapping[str, Any]) -> str | None:
    etag = meta["e_tag"]
    return f"{_ETAG}{etag}" if etag and not etag.startswith("W/") else None


def _etag(version: ImageVersion) -> str | None:
    return None if version.validator is None else version.validator.removeprefix(_ETAG)


def _is_other(version: ImageVersion, meta: Mapping[str, Any]) -> bool:
    """Whether the answer is not of the described version, should the service not have heeded the condition."""
    sent = meta["version"]
    if version.id is not None and sent is not None and not _is_replaced(version.ref, sent):
        return _version_id(version.ref, sent) != version.id
    return (meta["size"], _validator(meta)) != (version.size, version.validator)


def _check_coding(ref: ImageRef, attributes: Mapping[str, str]) -> None:
    """Refuse an object that is stored as a coded form of another, as a web server's answer of that kind is."""
    codings = {word.strip() for word in attributes.get("Content-Encoding", "").lower().split(",")}
    if codings - _NOT_CODED:
        raise SourceRefused(f"{ref} is stored with a content encoding", hint="store it without Content-Encoding")
