"""Registries, asked over the OCI distribution specification's HTTP API, and convinced that we may ask.

A registry that wants to know who we are answers 401 and says how (RFC 9110, 11.6.1): by Basic authentication, or by a token of
a server that it names (the distribution project's "Token Authentication Specification"). Only then the logins are looked for,
and they go to the registry and to its token server, nowhere else. What convinced a registry is kept for its repository until it
does not convince it any more, or a file of logins changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import SplitResult, urlencode, urlsplit

import msgspec
from urllib3.exceptions import SSLError

from underlay.contracts import ByteStream
from underlay.errors import ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable, UnderlayError
from underlay.once import FileStamp, file_stamp
from underlay.run import PLAIN_ENVIRONMENT
from underlay.sources.oci.challenge import Challenge, parse_challenges
from underlay.sources.oci.login import Login
from underlay.sources.oci.logins import described, find_login
from underlay.sources.oci.place import Place
from underlay.web import Answer, Credential, Web, check_status, open_body, printable

_NOTHING: Mapping[str, str] = MappingProxyType({})
_LONGEST_TOKEN = 256 << 10  # bytes of a token server's answer
_LONGEST_REFUSAL = 16 << 10
_ANONYMOUS = "no login"


class _Token(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


class _Reason(msgspec.Struct, frozen=True):
    code: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    errors: list[_Reason] = []


@dataclass(frozen=True, slots=True)
class _Granted:
    """What convinced a registry, and what the files of logins were then."""

    credential: Credential
    logins: FileStamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Registries:
    """A client of any number of registries. Safe to share between threads.

    Attributes:
        plain_http: hosts that are asked without TLS.
        auth_files: where logins are looked for, the first that has one counts.
        environment: of the programs that keep logins.
    """

    web: Web
    plain_http: frozenset[str] = frozenset()
    auth_files: Sequence[Path] = ()
    environment: Callable[[], Mapping[str, str]] = lambda: PLAIN_ENVIRONMENT
    # By registry and repository. Each use is one operation of a dict, which is atomic; two threads may get a token each.
    _granted: dict[tuple[str, str], _Granted] = field(default_factory=dict, init=False, repr=False, compare=False)

    def url(self, place: Place, path: str) -> str:
        """Where the registry has something of a repository."""
        scheme = "http" if place.host in self.plain_http else "https"
        return f"{scheme}://{place.server}/v2/{place.repository}/{path}"

    @contextmanager
    def answer(
        self, what: str, method: str, place: Place, path: str, *, headers: Mapping[str, str] = _NOTHING
    ) -> Iterator[Answer]:
        """The answer to a request that is allowed; its status is 200.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable, UntrustedCertificate, ConfigError
        """
        with ExitStack() as stack:
            granted = self._kept(place)
            answer = stack.enter_context(self._asked(what, method, place, path, headers))
            if answer.status == 403 and granted is not None:
                # Some registries answer so to a login that has ended; what they want now, who brings none is told.
                stack.close()
                self._drop(place, granted)
                answer = stack.enter_context(self._asked(what, method, place, path, headers))
            challenges = _challenges(answer, self.url(place, path))
            if challenges is not None:
                stack.close()
                self._convince(what, place, challenges)
                answer = stack.enter_context(self._asked(what, method, place, path, headers))
            self._check(what, place, answer)
            yield answer

    @contextmanager
    def _asked(self, what: str, method: str, place: Place, path: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        with ExitStack() as stack:
            asked = self.web.answer(what, method, self.url(place, path), headers={**headers, **self._authorization(place)})
            try:
                answer = stack.enter_context(asked)
            except SourceUnavailable as error:
                if not isinstance(error.__cause__, SSLError):
                    raise
                hint = f"if {place.host} has no TLS, add it to plain_http under [sources.oci]"
                raise SourceUnavailable(str(error), hint=hint) from error
            yield answer

    @contextmanager
    def blob(self, what: str, place: Place, digest: str, *, size: int, offset: int = 0) -> Iterator[ByteStream]:
        """The bytes of a blob from ``offset`` on, unchecked.

        Raises:
            as `answer`
        """
        path = f"blobs/{digest}"
        with ExitStack() as stack:
            granted = self._kept(place)
            try:
                body = stack.enter_context(self._body(what, place, path, size=size, offset=offset))
            except NotAuthorized:
                # The token has ended since the manifest was asked for; what the registry wants now, a HEAD is told that brings
                # none: with an old one it may be answered 403, or 200 where only the blob itself is refused.
                self._drop(place, granted)
                with self.answer(what, "HEAD", place, path):
                    pass
                body = stack.enter_context(self._body(what, place, path, size=size, offset=offset))
            except ImageNotFound as error:
                hint = "push the image again: a garbage collection may have removed it"
                raise ImageNotFound(f"{what}: {place.host} does not have the blob {digest} of it", hint=hint) from error
            yield _Blob(what, place.host, body)

    def _body(self, what: str, place: Place, path: str, *, size: int, offset: int) -> AbstractContextManager[ByteStream]:
        url = self.url(place, path)
        headers = self._authorization(place)
        return open_body(self.web, what, url, offset=offset, size=size, headers=headers, proves_itself=True)

    def _authorization(self, place: Place) -> Mapping[str, str]:
        granted = self._kept(place)
        return _NOTHING if granted is None else {"Authorization": granted.credential.header}

    def _kept(self, place: Place) -> _Granted | None:
        granted = self._granted.get((place.host, place.repository))
        return None if granted is None or granted.logins != file_stamp(self.auth_files) else granted

    def _drop(self, place: Place, granted: _Granted | None) -> None:
        """Forget what does not convince any more, unless another thread has got something new."""
        if self._granted.get((place.host, place.repository)) is granted:
            self._granted.pop((place.host, place.repository), None)

    # ------------------------------------------------------------------------------------------------------- authentication

    def _convince(self, what: str, place: Place, challenges: Sequence[Challenge]) -> None:
        """Get what the registry asks for, in place of what we had."""
        logins = file_stamp(self.auth_files)  # before they are read: a change meanwhile is found with the next request
        by_scheme = {challenge.scheme: challenge.parameters for challenge in challenges}
        login = find_login(self.auth_files, place, environment=self.environment())
        if login is not None and login.unusable is not None:
            hint = f"log in to {place.host} again, or mend what keeps the login; looked in {described(self.auth_files)}"
            raise NotAuthorized(f"{what}: the login {login.origin} cannot be used: {login.unusable}", hint=hint)
        if "bearer" in by_scheme:
            credential = self._token(what, place, by_scheme["bearer"], login)
        elif "basic" not in by_scheme:
            raise NotAuthorized(f"{what}: {place.host} wants authentication of a kind that Underlay does not know")
        elif login is None:
            raise self._nobody(f"{what}: {place.host} wants a login", place)
        elif login.identity_token is not None:
            why = f"the login {login.origin} is an identity token, and {place.host} wants user and password"
            raise NotAuthorized(f"{what}: {why}", hint=f"log in to {place.host} with user and password")
        else:
            credential = _basic(login)
        self._granted[place.host, place.repository] = _Granted(credential, logins)

    def _token(self, what: str, place: Place, parameters: Mapping[str, str], login: Login | None) -> Credential:
        """A token that lets us pull from the repository; of a public one, for nobody in particular."""
        realm = self._realm(what, place, parameters)
        asked = {"service": parameters.get("service", ""), "scope": f"repository:{place.repository}:pull"}
        with self._token_answer(what, realm, {name: value for name, value in asked.items() if value}, login) as answer:
            if answer.status in (400, 401, 403):
                refused = f"{what}: the token server of {place.host} answers {answer.status}"
                raise self._nobody(refused, place) if login is None else _rejected(refused, login.origin)
            check_status(f"{what}: the token server of {place.host}", answer)
            token = _read_token(answer.read(_LONGEST_TOKEN))
        if not token:
            raise SourceRefused(f"{what}: the token server of {place.host} gives no token")
        return Credential(origin=_ANONYMOUS if login is None else login.origin, token=token)

    def _token_answer(
        self, what: str, realm: SplitResult, asked: Mapping[str, str], login: Login | None
    ) -> AbstractContextManager[Answer]:
        """The token server's answer, asked by GET, or where we have an identity token by POST (the distribution project's
        "OAuth2 Token Authentication"), so that it stands in no URL.
        """
        if login is not None and login.identity_token is not None:
            form = {"grant_type": "refresh_token", "client_id": "underlay", "refresh_token": login.identity_token, **asked}
            return self.web.submit(what, realm.geturl(), form)
        headers = _NOTHING if login is None else {"Authorization": _basic(login).header}
        url = realm._replace(query=f"{realm.query}&{urlencode(asked)}".lstrip("&")).geturl()
        return self.web.answer(what, "GET", url, headers=headers)

    def _realm(self, what: str, place: Place, parameters: Mapping[str, str]) -> SplitResult:
        # What is asked over TLS sends us nowhere else; of what is not, a login can be overheard already.
        allowed = ("http", "https") if place.host in self.plain_http else ("https",)
        parts = _web_address(parameters.get("realm", ""))
        if parts is None or parts.scheme not in allowed:
            raise SourceRefused(f"{what}: {place.host} names a token server that is no {' or '.join(allowed)} address")
        return parts._replace(fragment="")

    def _check(self, what: str, place: Place, answer: Answer) -> None:
        if answer.status in (401, 403):
            refused = f"{what}: {place.host} answers {answer.status} {_reason(answer)}".rstrip()
            granted = self._granted.pop((place.host, place.repository), None)
            if granted is None or granted.credential.origin == _ANONYMOUS:
                raise self._nobody(refused, place)
            raise _rejected(refused, granted.credential.origin)
        if answer.status == 404:
            told = f"{what}: {place.host} answers 404 {_reason(answer)}".rstrip()
            raise ImageNotFound(told, hint="check the repository and the tag or digest")
        after = answer.headers.get("Retry-After", "")
        if answer.status in (429, 503) and after.isascii() and after.isdigit():
            told = f"{what}: {place.host} answers {answer.status} {_reason(answer)}".rstrip()
            raise SourceUnavailable(told, hint=f"try again after {after[:9]} s", retry_after=float(after[:9]))
        check_status(what, answer)

    def _nobody(self, told: str, place: Place) -> NotAuthorized:
        looked = f"log in by docker login {place.host} or podman login {place.host}; looked in {described(self.auth_files)}"
        return NotAuthorized(f"{told}, and there is no login for {place.host}", hint=looked)


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob whose transfer may outlast the token that it began with."""

    what: str
    host: str
    body: ByteStream

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self.body.readinto(buffer)
        except NotAuthorized as error:
            # It began well, so whoever opens it again is given a new token.
            raise SourceUnavailable(f"{self.what}: {self.host} stopped in the middle: {error}", hint="try again") from error


def _challenges(answer: Answer, url: str) -> Sequence[Challenge] | None:
    """What a registry's 401 asks for; None when it does not ask. Where it redirects to, nobody is told who we are."""
    if answer.status != 401 or urlsplit(answer.url)[:2] != urlsplit(url)[:2]:
        return None
    return parse_challenges(answer.headers.get("WWW-Authenticate", ""))


def _web_address(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname and parts.username is None else None


def _basic(login: Login) -> Credential:
    return Credential(origin=login.origin, user=login.user, password=login.password)


def _rejected(told: str, origin: str) -> NotAuthorized:
    return NotAuthorized(f"{told} to the login {origin}", hint="correct the login, or ask for permission to pull")


def _read_token(content: bytes) -> str:
    try:
        read = msgspec.json.decode(content, type=_Token)
    except (msgspec.MsgspecError, RecursionError):
        return ""
    token = read.token or read.access_token or ""
    return token if token.isascii() and token.isprintable() else ""


def _reason(answer: Answer) -> str:
    """The code that a registry gives its refusal (distribution specification, "Error Codes"), when it gives one."""
    try:
        reasons = msgspec.json.decode(answer.read(_LONGEST_REFUSAL), type=_Refusal).errors
    except (msgspec.MsgspecError, RecursionError, UnderlayError):
        return printable(answer.reason)
    return printable(reasons[0].code if reasons else answer.reason)
