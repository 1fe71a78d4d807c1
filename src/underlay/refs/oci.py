"""Refs to OCI registries: ``oci://host/repository:tag``, ``oci://host/repository@sha256:…``, and ``#part`` behind either."""

import re
from urllib.parse import quote, unquote

from underlay.errors import InvalidRef
from underlay.model import ImageRef

# The OCI distribution specification 1.1 ("Pulling manifests") has the grammar of repositories and tags, and the image
# specification that of digests; of the algorithms, those that it registers and Python computes. A host and a repository have
# 255 characters together, as most clients and registries have it.
_REF = r"(?s)//(?P<host>[^/@#]+)/(?P<repository>[^:@#]*)(:(?P<tag>[^@#]*))?(@(?P<digest>[^#]*))?(#(?P<part>.*))?"
_HOST = r"([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
_WORD = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_WORD}(/{_WORD})*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
_LONGEST = 255
_DOCKER_HUB = "docker.io"
_ALSO_DOCKER_HUB = frozenset({"index.docker.io", "registry-1.docker.io"})


def registry_host(text: str) -> str:
    """The one spelling of an OCI registry's host, with its port when it is not that of https.

    Raises:
        InvalidRef
    """
    host = text.lower().removesuffix(":443")
    port = re.search(r":(\d+)$", host)
    if not re.fullmatch(_HOST, host) or (port and int(port[1]) > 65535):
        raise InvalidRef(f"{text!r} is no host of an OCI registry", hint="write HOST or HOST:PORT")
    return _DOCKER_HUB if host in _ALSO_DOCKER_HUB else host


def oci_ref(text: str, rest: str) -> ImageRef:
    """Read what stands behind ``oci:``.

    Raises:
        InvalidRef
    """
    match = re.fullmatch(_REF, rest)
    if not match:
        hint = "write oci://host/repository:tag, or …@sha256:…; credentials belong into docker's config.json"
        told = re.sub(r"//.*@(?!sha(256|512):)", "//", text)  # a password may have a slash
        raise InvalidRef(f"{told!r} is no OCI ref", hint=hint)
    try:
        host = registry_host(match["host"])
    except InvalidRef as error:  # which repeats what may be a user's name with the beginning of a password
        raise InvalidRef("the OCI ref names no host of a registry", hint=error.hint) from None
    repository = _repository(host, match["repository"])
    for name, grammar in (("tag", _TAG), ("digest", _DIGEST)):
        if match[name] is not None and not re.fullmatch(grammar, match[name]):
            raise InvalidRef(f"the OCI ref to {host}/{repository} has no valid {name}: {match[name]!r}")
    # A digest says which manifest is meant, whatever else the tag may mean by now.
    meant = f":{match['tag'] or 'latest'}" if match["digest"] is None else f"@{match['digest']}"
    part = quote(unquote(match["part"] or ""), safe="")
    canonical = f"oci://{host}/{repository}{meant}{'#' + part if part else ''}"
    return ImageRef(scheme="oci", canonical=canonical, location=canonical)


def _repository(host: str, repository: str) -> str:
    # Docker Hub has no repository of one word, so that can only be meant as its own clients mean it.
    if host == _DOCKER_HUB and repository and "/" not in repository:
        repository = f"library/{repository}"
    if not re.fullmatch(_REPOSITORY, repository) or len(f"{host}/{repository}") > _LONGEST:
        hint = "a repository is words of small letters and digits, with '.', '_' and '-' inside and '/' between them"
        raise InvalidRef(f"the OCI ref to {host} names no repository: {repository[:_LONGEST]!r}", hint=hint)
    return repository
