"""What obstore's errors mean. Their text quotes what a server said; a message of ours repeats none of it but plain words."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from underlay.errors import (
    BodyTruncated,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
    UntrustedCertificate,
)
from underlay.model import ImageRef
from underlay.sources.objects.stores import MACHINE, Bucket, library

# The library gives no status and no error code but in its text: the first as its debugging form has it, the second as S3,
# Google and Azure write it into the body.
_STATUS = re.compile(r"Status \{\n\s+status: ([0-9]{3}),")
_CODE = re.compile(r"<Code>\s*([A-Za-z]{1,60})\s*</Code>")
_REGION = re.compile(r"<Region>\s*([a-z0-9-]{1,40})\s*</Region>")
_SYSTEM = re.compile(r'kind: [A-Za-z]+,\n\s+message: "([A-Za-z ]{1,60})"')
_TOKENS = re.compile(r"/latest/(api/token|meta-data/)|Error performing token request")

_SET: Mapping[str, str] = MappingProxyType(
    {
        "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or anonymous = true under [sources.s3]",
        "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or anonymous = true under [sources.gs]",
        "az": "set AZURE_STORAGE_ACCOUNT_KEY, or anonymous = true under [sources.az]",
    }
)
_TRY_LATER = frozenset({408, 425, 429})
_REGION_CODES = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_KEY_TROUBLE: Mapping[str, str] = MappingProxyType(
    {
        "InvalidAccessKeyId": "the service does not know that key",
        "SignatureDoesNotMatch": "the secret key is not the right one",
        "ExpiredToken": "they have expired",
        "InvalidToken": "their token is not valid",
        "TokenRefreshRequired": "they have expired",
        "RequestTimeTooSkewed": "this machine's clock is wrong",
    }
)
_ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "NoSuchBucket": "there is no such bucket",
        "ContainerNotFound": "there is no such container",
        "NoSuchKey": "the bucket has no such object",
        "BlobNotFound": "the container has no such object",
        "NoSuchVersion": "the object has no such version",
        "MethodNotAllowed": "that version is the mark of a removal",
    }
)
_ARCHIVED = frozenset({"InvalidObjectState", "BlobArchived"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What can be told of an error. ``text`` is for looking into only."""

    status: int | None
    code: str
    text: str


def failures() -> tuple[type[Exception], ...]:
    """What the library raises."""
    return (library().exceptions.BaseError, FileNotFoundError, ValueError)


@contextmanager
def translated(ref: ImageRef, bucket: Bucket) -> Iterator[None]:
    """The library's errors as those of the tree.

    Each stands alone: Amazon answers a wrong signature with all that was signed, and a temporary key's token is among that.
    """
    try:
        yield
    except failures() as error:
        code = _CODE.search(str(error))
        answer = _Answer(status=_status_of(error), code=code[1] if code else "", text=str(error))
        raise _meaning(ref, bucket, answer) from None


def is_unexplained(error: Exception) -> bool:
    """Whether the service itself refused a request, and not what hands out credentials for it, without a word of why."""
    status = _status_of(error)
    return status is not None and 400 <= status < 500 and not _CODE.search(str(error)) and not _TOKENS.search(str(error))


def _status_of(error: Exception) -> int | None:
    if told := _STATUS.search(str(error)):
        return int(told[1])
    kinds = {"PermissionDeniedError": 403, "UnauthenticatedError": 401, "PreconditionError": 412, "NotModifiedError": 304}
    return 404 if isinstance(error, FileNotFoundError) else kinds.get(type(error).__name__)


def _meaning(ref: ImageRef, bucket: Bucket, answer: _Answer) -> UnderlayError:
    for tell in (_no_credentials, _other_region, _wrong_keys, _absent, _of_status):
        if (error := tell(ref, bucket, answer)) is not None:
            return error
    return _broken(ref, bucket, answer)


def _no_credentials(ref: ImageRef, bucket: Bucket, answer: _Answer) -> UnderlayError | None:
    """The library asked for what requests are signed with, and was given nothing."""
    if not _TOKENS.search(answer.text):
        return None
    if bucket.credential == MACHINE:
        why = "the environment and the files have none, and the machine's metadata service gives none"
        return NotAuthorized(f"{ref}: there are no credentials for {bucket.where}: {why}", hint=_SET[bucket.scheme])
    if answer.status is None:
        return SourceUnavailable(
            f"{ref}: the token service for {bucket.credential}: {_why(answer.text)}", hint="try again later"
        )
    return NotAuthorized(f"{ref}: the token service refuses {bucket.credential}", hint="renew them")


def _other_region(ref: ImageRef, bucket: Bucket, answer: _Answer) -> UnderlayError | None:
    if answer.code not in _REGION_CODES and "incorrectly configured region" not in answer.text:
        return None
    right = _REGION.search(answer.text)
    hint = f"set region = {right[1]!r} under [sources.s3]" if right else "set the bucket's region under [sources.s3]"
    return SourceRefused(f"{ref}: the bucket is not in the region {bucket.region}", hint=hint)


def _wrong_keys(ref: ImageRef, bucket: Bucket, answer: _Answer) -> UnderlayError | None:
    if (why := _KEY_TROUBLE.get(answer.code)) is None:
        return None
    return NotAuthorized(
        f"{ref}: {bucket.where} refuses {bucket.credential}: {why}", hint="correct or renew them, or set the clock"
    )


def _absent(ref: ImageRef, bucket: Bucket, answer: _Answer) -> UnderlayError | None:
    if answer.status not in (404, 405) or (answer.status == 405 and answer.code != "MethodNotAllowed"):
        return None
    why = _ABSENT.get(answer.code, "there is no such object")
    return ImageNotFound(f"{ref}: {why} at {bucket.where}", hint="check the bucket, the key and the endpoint")


def _of_status(ref: ImageRef, bucket: Bucket, answer: _Answer) -> UnderlayError | None:
    said = f"{bucket.where} answers {answer.status} {answer.code}".rstrip()
    if answer.code in _ARCHIVED:
        return SourceRefused(f"{ref}: the object is archived", hint="restore it at its service, then fetch it again")
    if answer.status in (401, 403):
        return NotAuthorized(
            f"{ref}: {said} to {bucket.credential}", hint="use others, or have them allowed to read the object"
        )
    if answer.status in (412, 416):  # 416: it has become shorter than it was
        return SourceChanged(f"{ref} changed after it was described", hint="try again")
    if answer.status is not None and (answer.status >= 500 or answer.status in _TRY_LATER):
        return SourceUnavailable(f"{ref}: {said}", hint="try again later")
    return None if answer.status is None else SourceRefused(f"{ref}: {said}")


def _broken(ref: ImageRef, bucket: Bucket, answer: _Answer) -> UnderlayError:
    """No answer, or one that breaks off: by the library's words for each."""
    text = answer.text
    if "InvalidCertificate" in text:
        return UntrustedCertificate(
            f"{ref}: the certificate of {bucket.where} is not trusted", hint="set ca_file under [sources.http]"
        )
    if "non-partial response" in text:
        return SourceRefused(f"{ref}: {bucket.where} serves no ranges, so a transfer cannot go on where it broke")
    if "IncompleteBody" in text or "IncompleteMessage" in text:
        return BodyTruncated(f"{ref}: the body ended before its announced length", hint="try again")
    return SourceUnavailable(f"{ref}: {bucket.where}: {_why(text)}", hint="try again later")


def _why(text: str) -> str:
    words: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("the name of its host cannot be resolved", lambda: "dns error" in text),
        ("it went silent", lambda: "kind: Body" in text and "TimedOut" in text),
        ("it does not answer", lambda: "TimedOut" in text or "kind: Timeout" in text),
        ("what answers speaks no TLS", lambda: "InvalidContentType" in text),
    )
    if (found := next((word for word, holds in words if holds()), None)) is not None:
        return found
    system = _SYSTEM.search(text)
    return system[1] if system else "the connection failed"
