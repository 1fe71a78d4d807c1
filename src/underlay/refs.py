"""Image refs as text: one canonical spelling for each, with what is secret kept out of it.

Which schemes can be fetched is the registry's to say; here only their form is read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit

from underlay.errors import InvalidRef
from underlay.model import ImageRef

MAX_LENGTH = 1024
"""Bytes of a canonical ref as JSON writes them: two of them must fit an image's record (docs/design, metadata)."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_INDEX = re.compile(r"streams/v1/index\.s?json$")
_WORD = r"[A-Za-z0-9][A-Za-z0-9._+/-]*"
_PRODUCT = re.compile(rf"(?P<product>{_WORD}(:{_WORD}){{2}})(:(?P<ftype>{_WORD}))?")
_NAMED_PRODUCT = re.compile(rf"(?P<product>product=[A-Za-z0-9._+:/~-]+)(;ftype=(?P<ftype>{_WORD}))?")

# The OCI distribution specification 1.1 ("Pulling manifests") has the grammar of repositories and tags, and the image
# specification that of digests; of the algorithms, those that it registers and Python computes. A host and a repository have
# 255 characters together, as most clients and registries have it.
_OCI = re.compile(
    r"//(?P<host>[^/@#]+)/(?P<repository>[^:@#]*)(:(?P<tag>[^@#]*))?(@(?P<digest>[^#]*))?(#(?P<part>.*))?", re.DOTALL
)
_OCI_HOST = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_OCI_WORD = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_OCI_REPOSITORY = re.compile(rf"{_OCI_WORD}(/{_OCI_WORD})*")
_OCI_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_OCI_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_OCI_LONGEST = 255
_DOCKER_HUB = "docker.io"
_ALSO_DOCKER_HUB = frozenset({"index.docker.io", "registry-1.docker.io"})

# Query parameters that authorise one request and say nothing about which image is meant: AWS signature versions 2 and 4,
# CloudFront, Google Cloud Storage, Azure shared access signatures, Swift temporary URLs.
_SIGNATURES = re.compile(
    r"(x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|key-pair-id|sig|temp_url_sig|temp_url_expires)",
    re.IGNORECASE,
)
# Their companions have names so plain that they may as well say which image is meant, where nothing is signed.
_SIGNED_WITH = re.compile(r"(expires|policy|se|sp|sv|sr|st|spr|sip|skoid|sktid|skt|ske|sks|skv)", re.IGNORECASE)

# What buckets may be called, by the rules of each service; Azure calls one a container.
_BUCKETS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "s3": re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
        "gs": re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
        "az": re.compile(r"\$root|\$web|(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*"),
    }
)
# The query parameter by which each service names one version of an object, and what it may be.
_OBJECT_VERSIONS: Mapping[str, tuple[str, re.Pattern[str]]] = MappingProxyType(
    {
        "s3": ("versionId", re.compile(r"[!-~]{1,1024}")),
        "gs": ("generation", re.compile(r"[0-9]{1,20}")),
        "az": ("versionid", re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,20}Z")),
    }
)
_KEY_LENGTH = 1024  # bytes of an object's name; the services have one limit
_IN_KEYS = "/!$&'()*+,;=:@"  # what stays as it is in a path (RFC 3986, 3.3)

_SIMPLESTREAMS = "write simplestreams:https://host/path/#OS:RELEASE:ARCH[:FILETYPE], or #product=NAME[;ftype=FILETYPE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectName:
    """What a ref to an object in a store names.

    Attributes:
        key: the object's name as the store has it, decoded.
        version: the one that the ref asks for, or None for what is there now.
    """

    bucket: str
    key: str
    version: str | None


def object_name(ref: ImageRef) -> ObjectName:
    """What a ref of the schemes s3, gs and az names."""
    path, _, query = ref.canonical.partition("?")
    bucket, _, key = path.removeprefix(f"{ref.scheme}://").partition("/")
    return ObjectName(bucket=bucket, key=unquote(key), version=unquote(query.partition("=")[2]) or None)


def parse_ref(text: str) -> ImageRef:
    """Read a ref: a bare UUID or ``glance:…``, ``file:///path``, ``https://…``, ``oci://…``, ``s3://bucket/key``, or another's.

    Raises:
        InvalidRef: not a ref, or longer than `MAX_LENGTH` bytes in its canonical spelling.
    """
    ref = _parse(text.strip())
    if len(json.dumps(ref.canonical, ensure_ascii=False).encode()) - 2 > MAX_LENGTH:
        raise InvalidRef(f"the ref {ref.canonical[:40]}… is longer than {MAX_LENGTH} bytes")
    return ref


def shown(text: str) -> str:
    """A text for messages that may be a ref or none: without what may be credentials or a signature in it."""
    return re.sub(r"//.*@", "//", text.partition("?")[0], flags=re.DOTALL)


def is_ref(text: str) -> bool:
    """Whether a text has the form of a ref, as opposed to a file name or path."""
    return bool(_UUID.fullmatch(text) or (_SCHEME.fullmatch(text) and not text.startswith("/")))


def registry_host(text: str) -> str:
    """The one spelling of an OCI registry's host, with its port when it is not that of https.

    Raises:
        InvalidRef
    """
    host = text.lower().removesuffix(":443")
    port = re.search(r":(\d+)$", host)
    if not _OCI_HOST.fullmatch(host) or (port and int(port[1]) > 65535):
        raise InvalidRef(f"{text!r} is no host of an OCI registry", hint="write HOST or HOST:PORT")
    return _DOCKER_HUB if host in _ALSO_DOCKER_HUB else host


def _parse(text: str) -> ImageRef:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise InvalidRef(f"the ref {_shown(text)!r} has control characters")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRef(f"the ref {_shown(text)!r} is not UTF-8", hint="write %XX for each byte")
    if _UUID.fullmatch(text):
        return _glance(text)
    match = _SCHEME.fullmatch(text)
    if not match:
        raise InvalidRef(
            f"{_shown(text)!r} is no image ref", hint="write https://…, file:///absolute/path or a Glance image's UUID"
        )
    scheme, rest = match[1].lower(), match[2]
    if scheme in _DEFAULT_PORTS:
        return _http(scheme, text)
    if scheme == "file":
        return _file(text, rest)
    if scheme in _BUCKETS:
        return _object(scheme, rest)
    if scheme == "glance":
        return _glance_named(text, rest)
    if scheme == "oci":
        return _oci(text, rest)
    if scheme == "simplestreams":
        return _simplestreams(rest)
    if not rest:
        raise InvalidRef(f"the ref {text!r} names nothing after its scheme")
    return ImageRef(scheme=scheme, canonical=_without_userinfo(f"{scheme}:{rest}"), location=f"{scheme}:{rest}")


def _glance(uuid: str) -> ImageRef:
    return ImageRef(scheme="glance", canonical=f"glance:{uuid.lower()}", location=uuid.lower())


def _glance_named(text: str, rest: str) -> ImageRef:
    """``glance:UUID``; ``glance://UUID``, as Ironic writes it; ``glance://HOST[:PORT]/UUID`` of one endpoint."""
    endpoint, slash, uuid = rest.removeprefix("//").rpartition("/")
    if not _UUID.fullmatch(uuid) or (slash and not rest.startswith("//")):
        raise InvalidRef(
            f"the ref {_without_userinfo(text)!r} is no Glance image", hint="write glance:UUID, or glance://HOST:PORT/UUID"
        )
    if not slash:
        return _glance(uuid)
    canonical = f"glance://{_endpoint(endpoint)}/{uuid.lower()}"
    return ImageRef(scheme="glance", canonical=canonical, location=uuid.lower())


def _endpoint(text: str) -> str:
    """A host with its port, if it has one, in lower case; nothing else, because a token may go there."""
    refused = InvalidRef("the Glance ref names no endpoint", hint="write glance://HOST:PORT/UUID, without a user")
    try:
        url = urlsplit(f"//{text}")
        host, port = url.hostname, url.port
    except ValueError as error:
        raise refused from error
    if not host or re.search(r"[\s@/?#\\]", text):
        raise refused
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _file(text: str, rest: str) -> ImageRef:
    # A path is bytes to the system, of any encoding.
    path = unquote_to_bytes(rest[2:]).decode(errors="surrogateescape")
    if not rest.startswith("///") or rest.startswith("////") or "\0" in path:
        raise InvalidRef(f"{text!r} is no file ref", hint="write file:///absolute/path")
    if path.endswith("/") or any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise InvalidRef(f"the file ref {text!r} is not a plain absolute path", hint="leave out '.', '..' and empty parts")
    return ImageRef(scheme="file", canonical="file://" + quote(path.encode(errors="surrogateescape")), location=path)


def _http(scheme: str, text: str) -> ImageRef:
    # What cannot be read as a URL may hold its password or signature anywhere, so no message repeats it.
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise InvalidRef(f"the {scheme} ref is no URL", hint="check its host and its port") from error
    if not url.hostname or "" in url.hostname.removesuffix(".").split("."):
        raise InvalidRef(f"the {scheme} ref names no host", hint=f"write {scheme}://host/path")
    if re.search(r"\s", text):
        raise InvalidRef(f"the {scheme} ref to {url.hostname} has white space", hint="write %20 for a blank")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    authority = host if port in (None, _DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    query = _without_signature(url)
    canonical = f"{scheme}://{authority}{url.path or '/'}{'?' + query if query else ''}"
    return ImageRef(scheme=scheme, canonical=canonical, location=url._replace(fragment="").geturl())


def _oci(text: str, rest: str) -> ImageRef:
    match = _OCI.fullmatch(rest)
    if not match:
        hint = "write oci://host/repository:tag, or …@sha256:…; credentials belong into docker's config.json"
        raise InvalidRef(f"{_without_userinfo(text)!r} is no OCI ref", hint=hint)
    host = registry_host(match["host"])
    repository = _oci_repository(host, match["repository"])
    for name, grammar in (("tag", _OCI_TAG), ("digest", _OCI_DIGEST)):
        if match[name] is not None and not grammar.fullmatch(match[name]):
            raise InvalidRef(f"the OCI ref to {host}/{repository} has no valid {name}: {match[name]!r}")
    # A digest says which manifest is meant, whatever else the tag may mean by now.
    meant = f":{match['tag'] or 'latest'}" if match["digest"] is None else f"@{match['digest']}"
    part = quote(unquote(match["part"] or ""), safe="")
    canonical = f"oci://{host}/{repository}{meant}{'#' + part if part else ''}"
    return ImageRef(scheme="oci", canonical=canonical, location=canonical)


def _oci_repository(host: str, repository: str) -> str:
    # Docker Hub has no repository of one word, so that can only be meant as its own clients mean it.
    if host == _DOCKER_HUB and repository and "/" not in repository:
        repository = f"library/{repository}"
    if not _OCI_REPOSITORY.fullmatch(repository) or len(f"{host}/{repository}") > _OCI_LONGEST:
        hint = "a repository is words of small letters and digits, with '.', '_' and '-' inside and '/' between them"
        raise InvalidRef(f"the OCI ref to {host} names no repository: {repository[:_OCI_LONGEST]!r}", hint=hint)
    return repository


def _object(scheme: str, rest: str) -> ImageRef:
    # Whatever is no such ref may hold keys or a signature anywhere, so no message repeats it.
    path, question, query = rest.partition("?")
    bucket, _, name = path.removeprefix("//").partition("/")
    if not rest.startswith("//") or not _BUCKETS[scheme].fullmatch(bucket):
        hint = f"write {scheme}://BUCKET/KEY, without credentials, and the bucket's name as its service allows it"
        raise InvalidRef(f"the {scheme} ref names no bucket", hint=hint)
    key = _key(scheme, name)
    version = f"?{_version(scheme, query)}" if question else ""
    canonical = f"{scheme}://{bucket}/{quote(key, safe=_IN_KEYS)}{version}"
    return ImageRef(scheme=scheme, canonical=canonical, location=canonical)


def _key(scheme: str, name: str) -> str:
    try:
        key = unquote_to_bytes(name).decode()
    except UnicodeDecodeError as error:
        raise InvalidRef(f"the key of the {scheme} ref is not UTF-8") from error
    if "#" in name:
        raise InvalidRef(f"the key of the {scheme} ref ends at a '#'", hint="write %23 for one that belongs to the key")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in key):
        raise InvalidRef(f"the key of the {scheme} ref has control characters")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidRef(f"the key of the {scheme} ref has '.', '..' or an empty part", hint="give the object a plain name")
    if len(key.encode()) > _KEY_LENGTH:
        raise InvalidRef(f"the key of the {scheme} ref is longer than {_KEY_LENGTH} bytes")
    return key


def _version(scheme: str, query: str) -> str:
    name, form = _OBJECT_VERSIONS[scheme]
    given, _, value = query.partition("=")
    version = unquote(value)
    if given.lower() != name.lower() or "&" in value or not form.fullmatch(version):
        raise InvalidRef(
            f"the query of the {scheme} ref names no version of an object",
            hint=f"write ?{name}=VERSION alone; a signed URL is an https ref",
        )
    return f"{name}={quote(version, safe='')}"


def _simplestreams(rest: str) -> ImageRef:
    """A product of a stream: the URL under which ``streams/v1`` lies, and behind ``#`` which product of it."""
    url, _, chosen = rest.partition("#")
    if url.partition(":")[0].lower() not in _DEFAULT_PORTS or "?" in url:
        raise InvalidRef("the simplestreams ref names no web address without a query", hint=_SIMPLESTREAMS)
    base = _http(url.partition(":")[0].lower(), re.sub(r"([^/])$", r"\1/", _INDEX.sub("", url)))
    named, product = _NAMED_PRODUCT.fullmatch(chosen), _PRODUCT.fullmatch(chosen)
    if named:
        wanted = chosen
    elif product:
        wanted = product["product"].lower() + (f":{product['ftype']}" if product["ftype"] else "")
    else:
        raise InvalidRef(f"the simplestreams ref to {base.canonical} does not say which product", hint=_SIMPLESTREAMS)
    return ImageRef(
        scheme="simplestreams",
        canonical=f"simplestreams:{base.canonical}#{wanted}",
        location=f"{base.location}#{wanted}",
    )


def _without_signature(url: SplitResult) -> str:
    pairs = [pair for pair in url.query.split("&") if pair]
    unsigned = [pair for pair in pairs if not _SIGNATURES.fullmatch(_name(pair))]
    if len(unsigned) < len(pairs):
        unsigned = [pair for pair in unsigned if not _SIGNED_WITH.fullmatch(_name(pair))]
    return "&".join(unsigned)


def _name(pair: str) -> str:
    return unquote(pair.partition("=")[0])


def _without_userinfo(text: str) -> str:
    return re.sub(r"//[^/]*@", "//", text)


def _shown(text: str) -> str:
    """What a message repeats of a text that could not be read: nothing that may be a password or a signature."""
    path, mark, _ = _without_userinfo(text).partition("?")
    return f"{path}?…" if mark else path
