"""What a server's answer means in our errors, and what a failed connection means: our own words, never the library's.

What the library says may hold a whole URL, and that a password or a signature.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from underlay.errors import (
    BodyTruncated,
    ConfigError,
    ImageNotFound,
    NotAuthorized,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
    UntrustedCertificate,
)

if TYPE_CHECKING:
    from urllib3.exceptions import HTTPError

    from underlay.web.client import Answer, Web

_TRY_LATER = frozenset({408, 425, 429})
_OF_A_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # a server's failures are others
_LONGEST_WAIT = 9  # digits of seconds that we take for a wait
_LONGEST_WORDS = 60  # characters of what a server says that a message repeats


def check_status(what: str, answer: "Answer") -> None:
    """Make sure that an answer has the content that was asked for.

    Raises:
        ImageNotFound, NotAuthorized, SourceUnavailable, SourceRefused
    """
    status = answer.status
    if status in (200, 206):
        return
    told = f"{what}: the server answers {status} {printable(answer.reason)}".rstrip()
    if status in (204, 404, 410):
        raise ImageNotFound(told, hint="check the URL")
    if status == 407:
        raise NotAuthorized(f"{told}: the proxy wants credentials", hint="put them into the proxy's URL")
    if status in (401, 403):
        if answer.shown is not None:
            raise NotAuthorized(f"{told} to the credentials {answer.shown}", hint="correct them, or ask for permission")
        hint = "put credentials into the URL, as https://user:password@host/…, or into the credentials file"
        raise NotAuthorized(f"{told}, and no credentials were sent", hint=hint)
    if status >= 500 or status in _TRY_LATER:
        raise SourceUnavailable(told, hint="try again later", retry_after=_retry_after(answer))
    raise SourceRefused(told)


def _retry_after(answer: "Answer") -> float | None:
    """Seconds that the server asks us to wait (RFC 9110, 10.2.3); one that names a date is not understood."""
    text = answer.headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_WAIT else None


def printable(text: str) -> str:
    """What a server says, fit for a message."""
    return "".join(character for character in text if character.isascii() and character.isprintable())[:_LONGEST_WORDS]


@contextmanager
def translated(what: str, host: str, web: "Web") -> Iterator[None]:
    """Raise our errors in place of the library's.

    Args:
        host: that was asked, for messages. web: the client that asked.
    """
    from urllib3.exceptions import HTTPError

    try:
        yield
    except HTTPError as error:
        raise _meaning(what, host, error, web) from error


def _meaning(what: str, host: str, error: "HTTPError", web: "Web") -> UnderlayError:
    import ssl
    from http.client import IncompleteRead

    from urllib3.exceptions import LocationParseError, SSLError

    causes = (error.__cause__, error.__context__, *error.args)
    asked = "" if host in what else f"{host}: "  # a ref often names the host itself
    is_of_a_file = any(isinstance(cause, _OF_A_FILE) for cause in causes)
    if (is_of_a_file or isinstance(error, SSLError)) and (refused := _unusable(web)):
        return refused
    if isinstance(error, SSLError):
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                why = f"the server's certificate is not trusted: {cause.verify_message}"
                return UntrustedCertificate(f"{what}: {asked}{why}", hint="set ca_file under [sources.http]")
    if isinstance(error, LocationParseError):
        return SourceRefused(f"{what}: the name of its host cannot be read", hint="check the URL")
    if any(isinstance(cause, IncompleteRead) for cause in (error, *causes)):
        return BodyTruncated(f"{what}: the body ended before its announced length", hint="try again")
    return SourceUnavailable(f"{what}: {asked}{_why(error, causes)}", hint="try again later")


def _unusable(web: "Web") -> ConfigError | None:
    """What is wrong with a configured file, if that is why nothing works."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if web.ca_file is not None:
            context.load_verify_locations(web.ca_file)
    except OSError as error:
        why = error.strerror or "it holds no certificate"
        return ConfigError(f"the certificates in {web.ca_file} cannot be used: {why}", hint="correct ca_file")
    try:
        if web.client_cert is not None:
            context.load_cert_chain(web.client_cert, web.client_key)
    except OSError as error:
        why = error.strerror or "it holds no certificate with its key"
        return ConfigError(
            f"the client certificate in {web.client_cert} cannot be used: {why}", hint="correct client_cert and client_key"
        )
    return None


def _why(error: "HTTPError", causes: tuple[object, ...]) -> str:
    from urllib3.exceptions import NameResolutionError, ProxyError, ReadTimeoutError

    from underlay.web.heads import TooSlow

    if any(isinstance(cause, TooSlow) for cause in causes):
        return "it sends a little at a time, and does not get done"
    if isinstance(error, ReadTimeoutError):
        return "the server went silent"
    if isinstance(error, NameResolutionError):
        return "the name cannot be resolved"
    if isinstance(error, ProxyError):
        return "the proxy does not let us through"
    for cause in causes:
        if isinstance(cause, TimeoutError):
            return "the server does not answer"
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    return f"the connection failed ({type(error).__name__})"
