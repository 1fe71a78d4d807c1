"""The error tree: one class for each thing a caller can do something about.

::

    UnderlayError
    ├── BadInput                  what was asked for cannot be meant
    │   ├── InvalidRef · UnknownScheme · InvalidDigest · InvalidSize · InvalidName · InvalidForm
    │   └── UnknownBackend · UnknownCache · ConfigError
    ├── SourceError               where the image lives
    │   ├── ImageNotFound · NotAuthorized · SourceRefused · UntrustedCertificate
    │   └── SourceUnavailable* · BodyTruncated* · BodyTooLong · SourceChanged*
    ├── ImageRefused              the bytes are not what was asked for, or not safe to open
    │   ├── DigestMismatch · UnsafeImage · FormatMismatch · VirtualSizeRefused
    │   └── SignatureRefused · ImageDamaged
    ├── CacheError                the directory on this host
    │   ├── NotCached · CacheMissing · CacheNotWritable · UnknownLayout · LayoutDisagrees
    │   └── NotAnImage · ImageConflict · InsufficientSpace · StorageFailed
    ├── DiskError                 one instance's disk
    │   ├── DiskTooSmall · DiskExists · DiskNotFound · DiskInUse · ShrinkRefused
    │   ├── BackingPathTooLong · DiskUnrecorded · OverlayRefused
    │   └── Unsupported · BackendUnavailable*
    ├── UsageError                who needs an image, and what may be done about it
    │   ├── ImageInUse · LeaseNotFound · UnknownHost · PlanApplied
    │   └── InventoryUnavailable* · InvalidInventory
    ├── LockError
    │   └── LockTimeout* · LockLost*
    └── ToolError                 a program or library that we call
        └── ToolMissing · ToolFailed · ToolTimedOut · ExtraMissing

A star marks what is worth trying again (``transient``). Each leaf has an exit code of its own, a stable ``code`` for programs
and the HTTP status that an API answers with. A message is one line: what failed, of which thing, why; ``hint`` says what to do.
"""

from collections.abc import Mapping
from typing import ClassVar


class UnderlayError(Exception):
    """Anything that Underlay refuses or fails to do.

    Attributes:
        message: one line for people.
        hint: what to do about it, or None.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class BadInput(UnderlayError):
    """What was asked for cannot be meant: correct it and ask again."""

    code, exit_code, http_status = "bad-input", 2, 400


class InvalidRef(BadInput):
    """An image ref that does not follow its scheme's form."""

    code, exit_code = "invalid-ref", 10


class UnknownScheme(BadInput):
    """A ref whose scheme no source serves."""

    code, exit_code = "unknown-scheme", 11


class InvalidDigest(BadInput):
    """A digest that is not ALGORITHM:HEX of the right length, or a list of checksums that has none for the image."""

    code, exit_code = "invalid-digest", 12


class InvalidSize(BadInput):
    """A size or duration without its unit, negative, not a number, or more than a disk of its kind can have."""

    code, exit_code = "invalid-size", 13


class InvalidName(BadInput):
    """A name from outside that could leave its directory, or that the grammar does not allow."""

    code, exit_code = "invalid-name", 14


class UnknownBackend(BadInput):
    """A disk backend that nothing provides."""

    code, exit_code = "unknown-backend", 15


class ConfigError(BadInput):
    """A configuration that cannot be read: malformed TOML, an unknown key, a value of the wrong kind."""

    code, exit_code = "config-error", 16


class UnknownCache(BadInput):
    """A cache name that the configuration does not have."""

    code, exit_code = "unknown-cache", 17


class InvalidForm(BadInput):
    """A form or a format of an image that nothing can have, or that the cache never keeps."""

    code, exit_code = "invalid-form", 18


class SourceError(UnderlayError):
    """The place where the image lives did not give it."""

    code, exit_code, http_status = "source-error", 29, 502


class ImageNotFound(SourceError):
    """The source answers that it has no such image."""

    code, exit_code, http_status = "image-not-found", 20, 404


class NotAuthorized(SourceError):
    """The source wants credentials, or other ones."""

    code, exit_code, http_status = "not-authorized", 21, 403


class SourceUnavailable(SourceError):
    """The source does not answer, or answers that it cannot serve now.

    Attributes:
        retry_after: seconds after which the source wants to be asked again, if it says so.
    """

    code, exit_code, http_status, transient = "source-unavailable", 22, 503, True

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class BodyTruncated(SourceError):
    """Fewer bytes arrived than were announced."""

    code, exit_code, transient = "body-truncated", 23, True


class BodyTooLong(SourceError):
    """More bytes arrived than were announced."""

    code, exit_code = "body-too-long", 24


class SourceChanged(SourceError):
    """The image changed between its description and its transfer."""

    code, exit_code, transient = "source-changed", 25, True


class SourceRefused(SourceError):
    """We refuse to follow the source: a redirect out of https, a path outside the allowed ones, an encoded body."""

    code, exit_code = "source-refused", 26


class UntrustedCertificate(SourceError):
    """The source's TLS certificate is not trusted."""

    code, exit_code = "untrusted-certificate", 27


class ImageRefused(UnderlayError):
    """The bytes are not what was asked for, or not safe to open."""

    code, exit_code, http_status = "image-refused", 39, 422


class DigestMismatch(ImageRefused):
    """The content's digest is not the expected one.

    Attributes:
        expected, actual: both digests as ``algorithm:hex``.
    """

    code, exit_code = "digest-mismatch", 30

    def __init__(self, what: str, *, expected: str, actual: str, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(
            f"{what} has the digest {actual}, expected {expected}" + (f": {why}" if why else ""),
            hint=hint or "check the expected digest; if it is right, the source serves other bytes",
        )
        self.expected = expected
        self.actual = actual


class UnsafeImage(ImageRefused):
    """The content breaks a safety rule.

    Attributes:
        rule: the rule's stable name; docs/reference/rules.md lists them.
    """

    code, exit_code = "unsafe-image", 31

    def __init__(self, what: str, *, rule: str, why: str) -> None:
        super().__init__(f"{what} is refused by rule {rule}: {why}")
        self.rule = rule


class FormatMismatch(ImageRefused):
    """The content is of another format than its label, or than this cache or disk can use."""

    code, exit_code = "format-mismatch", 32


class VirtualSizeRefused(ImageRefused):
    """The virtual size is over the configured limit."""

    code, exit_code = "virtual-size-refused", 33


class SignatureRefused(ImageRefused):
    """An image, a list of checksums or a stream is not signed, or not by a key that is trusted for it; nothing is believed.

    Attributes:
        altered: the signature is a known key's, of other bytes; one of the two may be stale.
    """

    code, exit_code = "signature-refused", 34

    def __init__(self, message: str, *, hint: str | None = None, altered: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.altered = altered


class ImageDamaged(ImageRefused):
    """A cached image has not the bytes any more with which it was published, or they cannot be read; it is never served."""

    code, exit_code = "image-damaged", 35


class CacheError(UnderlayError):
    """Something about the cache directory on this host."""

    code, exit_code = "cache-error", 49


class NotCached(CacheError):
    """No image of this name, ref or path is in the caches."""

    code, exit_code, http_status = "not-cached", 40, 404


class CacheMissing(CacheError):
    """The cache directory is not there, or is not a directory."""

    code, exit_code = "cache-missing", 41


class CacheNotWritable(CacheError):
    """The cache directory cannot be written: read-only, or not ours to write."""

    code, exit_code = "cache-not-writable", 42


class UnknownLayout(CacheError):
    """The directory was laid out by another version of Underlay."""

    code, exit_code = "unknown-layout", 43


class LayoutDisagrees(CacheError):
    """The directory's own record and the configuration disagree."""

    code, exit_code = "layout-disagrees", 44


class NotAnImage(CacheError):
    """A symlink, directory or special file stands where an image should be."""

    code, exit_code = "not-an-image", 45


class ImageConflict(CacheError):
    """A different image already has this name."""

    code, exit_code, http_status = "image-conflict", 46, 409


class InsufficientSpace(CacheError):
    """The file system has no room.

    Attributes:
        where: the path that has no room. needed, free: bytes; needed is None when the file system filled up unforeseen.
        claimed: bytes that are free and that others have reserved; ``free`` is without them.
        reclaimable: bytes that would come free of what nobody needs, by cache directory, as far as that was looked at.
    """

    code, exit_code, http_status = "insufficient-space", 47, 507

    def __init__(self, where: str, *, needed: int | None, free: int, reclaimable: Mapping[str, int], claimed: int = 0) -> None:
        wanted = "more than that" if needed is None else f"{needed} bytes"
        of_each = ", ".join(f"{size} bytes in {cache}" for cache, size in reclaimable.items()) or "nothing"
        super().__init__(
            f"{where} has no room: needed {wanted}, free {free} bytes, reclaimable {of_each}",
            hint="free space on that file system, or use a cache on another one",
        )
        self.where = where
        self.needed = needed
        self.free = free
        self.reclaimable = reclaimable
        self.claimed = claimed


class StorageFailed(CacheError):
    """The file system failed to keep what we wrote (an I/O error, a failed fsync)."""

    code, exit_code = "storage-failed", 48


class DiskError(UnderlayError):
    """Something about one instance disk."""

    code, exit_code, http_status = "disk-error", 59, 409


class DiskTooSmall(DiskError):
    """The asked size is below the image's virtual size, or below the smallest disk that its source allows.

    Attributes:
        size, virtual_size, min_disk: bytes. min_disk: 0 when the source allows any.
    """

    code, exit_code, http_status = "disk-too-small", 50, 422

    def __init__(self, what: str, *, size: int, virtual_size: int, min_disk: int = 0, image: str = "the image") -> None:
        bound = f"virtual size is {virtual_size}" if size < virtual_size else f"min_disk is {min_disk}"
        super().__init__(
            f"{what} of {size} bytes is too small: {image}'s {bound} bytes",
            hint=f"ask for at least {max(virtual_size, min_disk)} bytes",
        )
        self.size = size
        self.virtual_size = virtual_size
        self.min_disk = min_disk


class DiskExists(DiskError):
    """A disk of this name exists with another base, size or format."""

    code, exit_code = "disk-exists", 51


class DiskNotFound(DiskError):
    """No such disk."""

    code, exit_code, http_status = "disk-not-found", 52, 404


class DiskInUse(DiskError):
    """The disk is open, in QEMU or elsewhere, or that cannot be told."""

    code, exit_code = "disk-in-use", 53


class ShrinkRefused(DiskError):
    """A disk is never made smaller."""

    code, exit_code, http_status = "shrink-refused", 54, 422


class BackingPathTooLong(DiskError):
    """The base image's absolute path does not fit a qcow2 header (1023 bytes)."""

    code, exit_code, http_status = "backing-path-too-long", 55, 422


class DiskUnrecorded(DiskError):
    """Nothing trustworthy says what format this disk has, so no tool may open it."""

    code, exit_code = "disk-unrecorded", 56


class OverlayRefused(DiskError):
    """An overlay on an image that may be replaced in its place: a master."""

    code, exit_code, http_status = "overlay-refused", 57, 422


class Unsupported(DiskError):
    """The disk's backend cannot do this at all, or not with this image; its traits tell what it can.

    Attributes:
        backend: its name.
    """

    code, exit_code, http_status = "unsupported", 58, 422

    def __init__(self, backend: str, what: str, *, hint: str | None = None) -> None:
        super().__init__(
            f"the {backend} backend cannot {what}", hint=hint or "'underlay disk backends' tells what each backend can"
        )
        self.backend = backend


class BackendUnavailable(DiskError):
    """What a backend keeps its disks in is not there or does not answer: a volume group, a pool, its servers."""

    code, exit_code, http_status, transient = "backend-unavailable", 90, 503, True


class UsageError(UnderlayError):
    """Something about who needs an image."""

    code, exit_code, http_status = "usage-error", 89, 409


class ImageInUse(UsageError):
    """Somebody needs the image, or it cannot be told that nobody does."""

    code, exit_code = "image-in-use", 80


class LeaseNotFound(UsageError):
    """No such lease or pin."""

    code, exit_code, http_status = "lease-not-found", 81, 404


class UnknownHost(UsageError):
    """No host of this name has recorded a use."""

    code, exit_code, http_status = "unknown-host", 82, 404


class PlanApplied(UsageError):
    """A plan is applied once: what it saw may be otherwise by now."""

    code, exit_code = "plan-applied", 83


class InventoryUnavailable(UsageError):
    """The inventory of instances does not answer, or not completely."""

    code, exit_code, http_status, transient = "inventory-unavailable", 84, 503, True


class InvalidInventory(UsageError):
    """A record of an instance is malformed, or there twice; the message says which record and which field."""

    code, exit_code, http_status = "invalid-inventory", 85, 422


class LockError(UnderlayError):
    """A lock could not be had or kept."""

    code, exit_code, http_status = "lock-error", 69, 503


class LockTimeout(LockError):
    """Somebody else held the lock until our deadline."""

    code, exit_code, transient = "lock-timeout", 60, True


class LockLost(LockError):
    """The lock file was replaced while we held it."""

    code, exit_code, transient = "lock-lost", 61, True


class ToolError(UnderlayError):
    """A program or library that we call is missing or failed."""

    code, exit_code = "tool-error", 79


class ToolMissing(ToolError):
    """A program is not installed."""

    code, exit_code = "tool-missing", 70


class ToolFailed(ToolError):
    """A program ended with an error."""

    code, exit_code = "tool-failed", 71


class ToolTimedOut(ToolError):
    """A program did not end within its limit."""

    code, exit_code = "tool-timed-out", 72


class ExtraMissing(ToolError):
    """An optional library is not installed; the hint names the extra."""

    code, exit_code = "extra-missing", 73
