"""From where the drop-in fetches: the web and files by our own sources, all else by the image services of Ironic itself."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from threading import Semaphore
from typing import Any, BinaryIO, ClassVar
from urllib.parse import quote, urlsplit

from underlay.contracts import ByteStream, ImageSource
from underlay.errors import (
    ExtraMissing,
    ImageNotFound,
    InvalidDigest,
    NotAuthorized,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from underlay.model import Digest, ImageRef, ImageVersion
from underlay.naming import content_version_id
from underlay.openstack.ironic.exceptions import exception_class, failure
from underlay.openstack.ironic.options import Options
from underlay.openstack.piped import piped
from underlay.sources.file import FileSource
from underlay.sources.http import HttpSource
from underlay.values import replace
from underlay.web import Web

_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE = frozenset({"0", "f", "false", "off", "n", "no"})

# Which of Ironic's exceptions is which of ours; the first that fits. One that this release does not have is passed over.
_MEANINGS: Sequence[tuple[str, type[SourceError]]] = (
    ("ImageNotFound", ImageNotFound),
    ("NotAuthorized", NotAuthorized),
    ("ImageServiceAuthenticationRequired", NotAuthorized),
    ("ImageRefValidationFailed", SourceRefused),
    ("ImageUnacceptable", SourceRefused),
    ("InvalidParameterValue", SourceRefused),
    ("IronicException", SourceUnavailable),
)


def sources_of(options: Options, *, context: Any = None, auth: Mapping[str, Any] | None = None) -> dict[str, ImageSource]:
    """The source of each scheme.

    Args:
        context: of the request. auth: credentials for image services that take them.
    """
    web = http_source(options)
    files = FileSource(allowed_paths=tuple(map(Path, options.file_url_allowed_paths)))
    service = ServiceSource(context=context, auth=auth, takes_md5=options.allow_md5_checksum)
    # We talk to no server whose certificate is not verified; where Ironic is told to, its own image service does.
    secure_web = service if _is_false(options.webserver_verify_ca) else web
    sources: Mapping[str, ImageSource] = {
        "http": web,
        "https": secure_web,
        "file": files,
        "glance": service,
        "oci": service,
    }
    slots = _slots(options.transfers)
    return {scheme: ConductorSource(source, slots, keeps=scheme != "file") for scheme, source in sources.items()}


def decompressed(options: Options) -> frozenset[str]:
    """The compressions that Ironic undoes; gzip and xz are none of them."""
    return frozenset() if options.disable_zstandard_decompression else frozenset({"zstd"})


def permitted_formats(options: Options) -> frozenset[str]:
    """The formats that Ironic permits, as image services say them; a disk with a partition table is a raw disk."""
    permitted = frozenset(options.permitted_image_formats)
    return permitted | {"gpt"} if "raw" in permitted else permitted


@cache
def _slots(count: int) -> Semaphore:
    # Ironic makes a cache for each call, and its limit is the whole process's.
    return Semaphore(count)


# ---------------------------------------------------------------------------------------------------------------------- the web


def http_source(options: Options) -> HttpSource:
    """The web, with Ironic's certificates and time-outs. Each fetch asks the server whether the image has changed."""
    verify = options.webserver_verify_ca.strip()
    is_file = not _is_false(verify) and verify.lower() not in _TRUE and Path(verify).exists()
    return HttpSource(
        revalidate_after=0.0,
        web=Web(
            connect_timeout=float(options.webserver_verify_timeout),
            read_timeout=float(options.webserver_connection_timeout),
            ca_file=verify if is_file else None,
        ),
    )


def _is_false(text: str) -> bool:
    return text.strip().lower() in _FALSE


def located(ref: ImageRef, options: Options) -> ImageRef:
    """The ref with the configured credentials in its location, which is never shown, where its host may have them.

    Raises:
        ImageRefValidationFailed: credentials are to be sent, and there are none.
    """
    if ref.scheme not in ("http", "https") or options.image_server_auth_strategy != "http_basic":
        return ref
    url = urlsplit(ref.location)
    if not _may_have_credentials(url.hostname or "", options):
        return ref
    user, password = options.image_server_user, options.image_server_password
    if not user or not password:
        missing = "image_server_user" if not user else "image_server_password"
        raise failure("ImageRefValidationFailed", f"{missing} is not set, and http_basic needs it", href=str(ref))
    authority = f"{quote(user, safe='')}:{quote(password, safe='')}@{url.netloc.rpartition('@')[2]}"
    return replace(ref, location=url._replace(netloc=authority).geturl())


def _may_have_credentials(host: str, options: Options) -> bool:
    """Whether a host is one of those that are named, by itself or by the domain that it is in."""
    allowed = options.image_server_auth_hosts
    if not allowed:
        return options.image_server_auth_permit_unknown_hosts
    return any(host.endswith(entry) if entry.startswith(".") else host == entry for entry in allowed)


# ------------------------------------------------------------------------------------------------------ Ironic's image services


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSource:
    """Images that an image service of Ironic fetches: Glance's, those of a container registry, those of an unverified server.

    Attributes:
        context: of the request. auth: credentials for services that take them.
        takes_md5: whether an MD5 that the service promises is checked.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"glance", "oci", "https"})
    revalidate_after: float = 0.0
    stale_if_error: bool = True
    context: Any = field(default=None, repr=False)
    auth: Mapping[str, Any] | None = field(default=None, repr=False)
    takes_md5: bool = True

    def fixed_id(self, ref: ImageRef) -> str | None:
        """The UUID of an image in Glance; the ref of one in a registry when it names a digest."""
        if ref.scheme == "glance":
            return ref.location
        return ref.canonical if ref.scheme == "oci" and "@" in ref.canonical else None

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """What the ref fixes, else the ref and its content's digest."""
        return self.fixed_id(ref) or content_version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the service says of the image.

        Raises:
            ExtraMissing: Ironic is not installed here. ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable
        """
        with _translated(ref):
            shown = self._service(ref).show(ref.location)
        virtual_size = (shown.get("properties") or {}).get("virtual_size")
        return ImageVersion(
            ref=ref,
            id=self.fixed_id(ref),
            size=shown.get("size"),
            disk_format=shown.get("disk_format"),
            digests=self._digests(shown),
            no_store=bool(shown.get("no_cache")),
            validator=_validator(shown),
            resumable=False,  # the service sends what is there, from its beginning
            properties={} if virtual_size is None else {"virtual_size": str(virtual_size)},
        )

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """The bytes that the service sends, from ``offset`` on. It writes from a thread, which ends with the context.

        Raises:
            as `describe`
        """

        def write(file: BinaryIO) -> None:
            self._service(version.ref).download(version.ref.location, file)

        with piped(write, partial(_translated, version.ref), offset=offset) as stream:
            yield stream

    def _service(self, ref: ImageRef) -> Any:
        try:
            services = import_module("ironic.common.image_service")
        except ImportError as error:
            raise ExtraMissing(
                f"{ref} cannot be fetched: Ironic cannot be imported", hint="its image services work in Ironic's environment"
            ) from error
        service = services.get_image_service(ref.location, context=self.context)
        if service.is_auth_set_needed:
            service.set_image_auth(ref.location, self.auth)
        return service

    def _digests(self, shown: Mapping[str, Any]) -> tuple[Digest, ...]:
        """The strongest digest that the service promises of the bytes that it sends."""
        if shown.get("image_type") == "bootc":  # a container: the digest is its manifest's
            return ()
        more = shown.get("properties") or {}  # where Ironic leaves what Glance's client calls otherwise than Ironic does
        algorithm = shown.get("os_hash_algo") or more.get("hash_algo")
        value = shown.get("os_hash_value") or more.get("hash_value")
        md5 = shown.get("checksum") if self.takes_md5 else None
        for promised in (f"{algorithm}:{value}", shown.get("digest") or "", f"md5:{md5}"):
            with suppress(InvalidDigest):
                return (Digest.parse(promised),)
        return ()


def _validator(shown: Mapping[str, Any]) -> str | None:
    """What tells that an image has changed, of those that may: when it was modified, and how long it is."""
    modified = shown.get("updated_at")
    return None if modified is None else f"updated:{modified.isoformat()};length:{shown.get('size')}"


@contextmanager
def _translated(ref: ImageRef) -> Iterator[None]:
    try:
        yield
    except exception_class("IronicException") as error:
        raise _meaning(error)(f"{ref}: {error}") from error
    except OSError as error:  # what the library for the web raises is one, too
        raise SourceUnavailable(f"{ref}: {error}", hint="try again later") from error


def _meaning(error: Exception) -> type[SourceError]:
    module = import_module("ironic.common.exception")
    return next(ours for name, ours in _MEANINGS if isinstance(error, getattr(module, name, ())))


# ----------------------------------------------------------------------------------------------------- what Ironic asks of all


@dataclass(frozen=True, slots=True)
class ConductorSource:
    """Another source as a conductor uses it: so many transfers at a time.

    Attributes:
        slots: one for each transfer.
        keeps: whether its images are kept; else they are only delivered.
    """

    source: ImageSource
    slots: Semaphore
    keeps: bool = True
    schemes: ClassVar[frozenset[str]] = frozenset()

    @property
    def revalidate_after(self) -> float:
        """As the source has it."""
        return self.source.revalidate_after

    @property
    def stale_if_error(self) -> bool:
        """As the source has it."""
        return self.source.stale_if_error

    def fixed_id(self, ref: ImageRef) -> str | None:
        """As the source says."""
        return self.source.fixed_id(ref)

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """As the source says."""
        return self.source.version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """As the source says; an image that is not to be kept says so."""
        version = self.source.describe(ref, known=known)
        return version if self.keeps else replace(version, no_store=True)

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:
        """As the source does, as soon as there is a slot.

        Raises:
            as the source
        """
        with self.slots, self.source.open(version, offset=offset) as stream:
            yield stream
