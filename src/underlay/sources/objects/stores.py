"""Opening a bucket: which service is asked, how, and as whom. What we were not told, the library looks for by itself."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from underlay.errors import ConfigError, ExtraMissing, NotAuthorized, SourceRefused
from underlay.sources.objects.access import Addressing, AzureAccess, GcsAccess, Keys, S3Access
from underlay.sources.objects.profiles import Profile, read_profile
from underlay.web import Web

ANONYMOUS = "requests without credentials"
MACHINE = "this machine's own credentials"

_DEFAULT_REGION = "us-east-1"
_REGION = re.compile(r"[a-z0-9-]{1,63}")
_VISIBLE = re.compile(r"[!-~]+")  # what a header can carry
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_NO_PROXY = "http://127.0.0.1:9"  # never asked: everybody is excluded from it
_EVERYBODY = ("*", "0.0.0.0/0", "::/0")
_METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "metadata.google.internal")
_WHOLE_BODY = timedelta(days=30)  # a body is bounded by its pace, not by its length


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket that can be asked.

    Attributes:
        store: the library's. where: how messages call the service. credential: what the requests are made with, by name.
        region: that the requests are signed for, where it matters.
    """

    store: Any
    scheme: str
    name: str
    where: str
    credential: str
    region: str | None = None


def library() -> ModuleType:
    """obstore.

    Raises:
        ExtraMissing
    """
    try:
        return import_module("obstore")
    except ImportError as error:
        raise ExtraMissing("object stores need obstore", hint="pip install 'underlay[s3]'") from error


def check_process(what: str) -> None:
    """Make sure that the library can ask from this process. Called before each request.

    The library asks by threads that all its stores share. They begin with a process's first request, and a child that is forked
    afterwards has none of them: its requests would wait for ever. Whether the program itself used the library before it forked
    cannot be told.

    Raises:
        SourceRefused
    """
    if _asking_process() != os.getpid():
        hint = "start a new process for it, or fork before the first fetch from an object store"
        raise SourceRefused(
            f"{what}: this process was forked from one that has used obstore, which works there only", hint=hint
        )


@cache  # the first answer stays, in children too, as the library's threads stay with the process that began them
def _asking_process() -> int:
    return os.getpid()


def open_s3(bucket: str, access: S3Access, web: Web) -> Bucket:
    """A bucket of S3 or of what speaks its language. Nothing is asked yet.

    Raises:
        ExtraMissing, NotAuthorized, ConfigError, SourceRefused
    """
    profile = Profile(name="") if access.anonymous else read_profile(access.files, access.profile)
    endpoint = access.endpoint or profile.endpoint
    region = access.region or profile.region or _DEFAULT_REGION
    if not _REGION.fullmatch(region):
        raise ConfigError("the region of S3 is none", hint="write one such as eu-central-1")
    settings: dict[str, Any] = {"region": region, "skip_signature": access.anonymous}
    virtual = _is_virtual(bucket, endpoint, access.addressing_style)
    settings["virtual_hosted_style_request"] = virtual
    if endpoint is not None:
        _check_endpoint(endpoint, "s3", allow_http=access.allow_http)
        # Of the two settings for an endpoint this one is the stronger, so that none of the environment overrides it.
        settings["aws_endpoint_url_s3"] = _with_bucket(endpoint, bucket) if virtual else endpoint.rstrip("/")
    if access.metadata_endpoint is not None:
        _check_endpoint(access.metadata_endpoint, "s3", allow_http=True)
        settings["metadata_endpoint"] = access.metadata_endpoint
    keys, credential = _s3_credential(access, profile)
    store = library().store.S3Store(
        bucket,
        config=settings,
        # Handed out by a function, so that a token of the environment is never sent with the keys of a profile.
        credential_provider=None if keys is None else lambda: _handed_out(keys),
        client_options=_client_options(web, endpoint=endpoint, allow_http=endpoint is not None and access.allow_http),
        retry_config={"max_retries": 0},
    )
    where = endpoint or f"Amazon S3 in {region}"
    return Bucket(store=store, scheme="s3", name=bucket, where=where, credential=credential, region=region)


def open_gcs(bucket: str, access: GcsAccess, web: Web) -> Bucket:
    """A bucket of Google Cloud Storage. Nothing is asked yet.

    Raises:
        ExtraMissing, NotAuthorized, SourceRefused
    """
    settings: dict[str, Any] = {"skip_signature": access.anonymous}
    credential = ANONYMOUS if access.anonymous else MACHINE
    if access.endpoint is not None:
        _check_endpoint(access.endpoint, "gs", allow_http=access.allow_http)
        settings["base_url"] = access.endpoint.rstrip("/")
    if access.credentials_file is not None and not access.anonymous:
        credential = f"the credentials in {access.credentials_file}"
        settings["application_credentials"] = str(access.credentials_file)
    library_ = library()
    try:
        store = library_.store.GCSStore(
            bucket,
            config=settings,
            client_options=_client_options(web, endpoint=access.endpoint, allow_http=access.allow_http),
            retry_config={"max_retries": 0},
        )
    except library_.exceptions.BaseError:  # which may quote the file or the key
        raise NotAuthorized(f"{credential} cannot be used", hint="see that the file is there and is JSON of Google's") from None
    where = access.endpoint or "Google Cloud Storage"
    return Bucket(store=store, scheme="gs", name=bucket, where=where, credential=credential)


def open_azure(container: str, access: AzureAccess, web: Web) -> Bucket:
    """A container of Azure Blob Storage. Nothing is asked yet.

    Raises:
        ExtraMissing, NotAuthorized, ConfigError, SourceRefused
    """
    if access.account is None or not _ACCOUNT.fullmatch(access.account):
        raise ConfigError(
            "no storage account of Azure is named", hint="set account under [sources.az], or AZURE_STORAGE_ACCOUNT_NAME"
        )
    settings: dict[str, Any] = {"account_name": access.account, "skip_signature": access.anonymous}
    if access.endpoint is not None:
        _check_endpoint(access.endpoint, "az", allow_http=access.allow_http)
        settings["endpoint"] = access.endpoint.rstrip("/")
    credential = _azure_credential(access, settings)
    library_ = library()
    try:
        store = library_.store.AzureStore(
            container,
            config=settings,
            client_options=_client_options(web, endpoint=access.endpoint, allow_http=access.allow_http),
            retry_config={"max_retries": 0},
        )
    except library_.exceptions.BaseError:  # which may quote the file or the key
        raise NotAuthorized(f"{credential} cannot be used", hint="a key is in base64, as Azure shows it") from None
    where = access.endpoint or f"the Azure account {access.account}"
    return Bucket(store=store, scheme="az", name=container, where=where, credential=credential)


def _s3_credential(access: S3Access, profile: Profile) -> tuple[Keys | None, str]:
    """The keys, and what they are called; none where nobody asks for any, or where the library is to find them."""
    if access.anonymous:
        return None, ANONYMOUS
    if access.keys is not None:
        return _whole(access.keys, "the keys of the environment"), "the keys of the environment"
    if profile.keys is not None:
        return _whole(profile.keys, f"the keys of the profile {profile.name!r}"), f"the keys of the profile {profile.name!r}"
    if not access.machine_credentials:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or anonymous = true under [sources.s3]"
        raise NotAuthorized("there are no credentials for S3 in the environment or in a profile", hint=hint)
    return None, MACHINE


def _whole(keys: Keys, credential: str) -> Keys:
    for value, word in ((keys.access_key_id, "the access key's id"), (keys.secret_access_key, "the secret key")):
        if not value:
            raise NotAuthorized(f"{credential} are not complete: {word} is missing")
    if not all(_VISIBLE.fullmatch(value) for value in (keys.access_key_id, keys.session_token or "-")):
        raise NotAuthorized(f"{credential} have characters that no key has")
    return keys


def _handed_out(keys: Keys) -> dict[str, str | None]:
    return {
        "access_key_id": keys.access_key_id,
        "secret_access_key": keys.secret_access_key,
        "token": keys.session_token,
        "expires_at": None,
    }


def _azure_credential(access: AzureAccess, settings: dict[str, Any]) -> str:
    if access.anonymous:
        return ANONYMOUS
    if access.key is not None:
        settings["account_key"] = access.key
        return f"the key of the account {access.account}"
    if access.sas is not None:
        settings["sas_key"] = access.sas
        return "the shared access signature"
    return MACHINE


def _is_virtual(bucket: str, endpoint: str | None, style: Addressing) -> bool:
    """Whether the host's name names the bucket: at Amazon, which asks for it, unless a dot in it breaks the certificate."""
    if style is Addressing.AUTO:
        return endpoint is None and "." not in bucket
    return style is Addressing.VIRTUAL


def _with_bucket(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl().rstrip("/")


def _check_endpoint(endpoint: str, scheme: str, *, allow_http: bool) -> None:
    """Refuse what the library would take amiss. No message repeats what is no plain URL: it may hold credentials."""
    if not _is_plain_url(endpoint):
        raise ConfigError(f"the endpoint for {scheme} is no plain URL", hint="write https://HOST or https://HOST:PORT")
    if endpoint.lower().startswith("http:") and not allow_http:
        raise SourceRefused(
            f"the endpoint {endpoint} has no TLS", hint=f"use https, or set allow_http = true under [sources.{scheme}]"
        )


def _is_plain_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    spare = "@" in parts.netloc or parts.query or parts.fragment
    return has_host and not spare and parts.scheme in ("http", "https") and bool(_VISIBLE.fullmatch(text))


def _client_options(web: Web, *, endpoint: str | None, allow_http: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_http": allow_http,
        "connect_timeout": timedelta(seconds=web.connect_timeout),
        "read_timeout": timedelta(seconds=web.read_timeout),
        "timeout": _WHOLE_BODY,
        "user_agent": "underlay",
    }
    if web.ca_file is not None:
        options["root_certificate"] = _certificates(Path(web.ca_file))
    return options | _proxy(web, "http" if (endpoint or "").lower().startswith("http:") else "https")


def _proxy(web: Web, scheme: str) -> dict[str, str]:
    """The proxy, and who is asked without one. The library would read the environment where it is not told of one."""
    web.check_usable()
    proxy = web.proxies.get(scheme)
    if proxy is None or "*" in web.no_proxy:
        return {"proxy_url": _NO_PROXY, "proxy_excludes": ",".join(_EVERYBODY)}
    return {"proxy_url": proxy, "proxy_excludes": ",".join((*web.no_proxy, *_METADATA_SERVICES))}


def _certificates(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"the certificates in {file} cannot be used: {error.strerror}", hint="correct ca_file") from error
