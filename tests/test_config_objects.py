"""The tables of the object stores: what each key and each variable of the environment is to the source."""

import os
from pathlib import Path
from typing import Any

import pytest

from underlay.config import parse_config
from underlay.errors import ConfigError
from underlay.sources.objects.access import Addressing, AzureAccess, GcsAccess, Keys, S3Access

CACHE = '[caches.base]\nkind = "base"\npath = "/srv/base"\n'
FILES = (Path("/home/operator/.aws/credentials"), Path("/home/operator/.aws/config"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/operator")
    return monkeypatch


def arguments(scheme: str, text: str = "") -> Any:
    return parse_config(CACHE + text, origin=Path("/etc/underlay.toml")).sources[scheme]


def access(scheme: str, text: str = "") -> Any:
    return arguments(scheme, text)[scheme]


def test_without_a_table_and_a_variable_the_services_themselves_are_asked() -> None:
    assert S3Access(files=FILES) == access("s3")
    assert GcsAccess() == access("gs")
    assert AzureAccess() == access("az")


def test_every_key_of_s3_has_its_effect() -> None:
    table = """
        [sources.s3]
        endpoint = "http://store:9000"
        region = "eu-central-1"
        profile = "images"
        anonymous = true
        allow_http = true
        addressing_style = "virtual"
        revalidate_after = "1h"
        stale_if_error = false
    """
    expected = S3Access(
        endpoint="http://store:9000",
        region="eu-central-1",
        profile="images",
        files=FILES,
        anonymous=True,
        allow_http=True,
        addressing_style=Addressing.VIRTUAL,
    )
    found = arguments("s3", table)
    assert (expected, 3600.0, False) == (found["s3"], found["revalidate_after"], found["stale_if_error"])


def test_every_key_of_the_others_has_its_effect() -> None:
    table = """
        [sources.gs]
        endpoint = "http://store:4443"
        credentials_file = "/etc/underlay/google.json"
        anonymous = true
        allow_http = true
        revalidate_after = "1h"
        [sources.az]
        account = "images"
        endpoint = "http://store:10000/images"
        anonymous = true
        allow_http = true
        stale_if_error = false
    """
    google = GcsAccess(
        endpoint="http://store:4443", credentials_file=Path("/etc/underlay/google.json"), anonymous=True, allow_http=True
    )
    azure = AzureAccess(endpoint="http://store:10000/images", account="images", anonymous=True, allow_http=True)
    assert (google, azure) == (access("gs", table), access("az", table))
    assert 3600.0 == arguments("gs", table)["revalidate_after"]
    assert False is arguments("az", table)["stale_if_error"]


def test_the_variables_of_the_services_own_tools_are_read(environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "geheim",
        "AWS_SESSION_TOKEN": "heimlich",
        "AWS_ENDPOINT_URL": "https://other",
        "AWS_ENDPOINT_URL_S3": "https://store",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_PROFILE": "images",
        "AWS_SHARED_CREDENTIALS_FILE": "~/keys",
        "AWS_CONFIG_FILE": "/etc/aws",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://169.254.0.1",
        "GOOGLE_APPLICATION_CREDENTIALS": "/etc/google.json",
        "AZURE_STORAGE_ACCOUNT": "images",
        "AZURE_STORAGE_KEY": "geheim",
        "AZURE_STORAGE_SAS_TOKEN": "heimlich",
        "AZURE_STORAGE_ENDPOINT": "https://blobs",
    }.items():
        environment.setenv(name, value)
    expected = S3Access(
        endpoint="https://store",
        region="eu-west-1",
        keys=Keys(access_key_id="AKIATEST", secret_access_key="geheim", session_token="heimlich"),
        profile="images",
        files=(Path("/home/operator/keys"), Path("/etc/aws")),
        machine_credentials=False,
        metadata_endpoint="http://169.254.0.1",
    )
    assert expected == access("s3")
    assert GcsAccess(credentials_file=Path("/etc/google.json")) == access("gs")
    assert AzureAccess(account="images", endpoint="https://blobs", key="geheim", sas="heimlich") == access("az")
    everything = repr(parse_config(CACHE, origin=Path("/etc/underlay.toml")))
    assert not [secret for secret in ("AKIATEST", "geheim", "heimlich") if secret in everything]


def test_a_configured_profile_comes_before_the_keys_of_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    environment.setenv("AWS_PROFILE", "other")
    found = access("s3", '[sources.s3]\nprofile = "images"')
    assert (None, "images") == (found.keys, found.profile)


def test_half_a_pair_of_keys_is_kept_so_that_the_source_tells_which_is_missing(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    assert Keys(access_key_id="AKIATEST", secret_access_key="") == access("s3").keys


def test_a_token_in_a_file_is_looked_for_although_the_metadata_service_is_not(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert not access("s3").machine_credentials
    environment.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token")
    assert access("s3").machine_credentials


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('[sources.s3]\nendpoint = "store:9000"', "endpoint"),
        ('[sources.s3]\nendpoint = "https://st ore"', "endpoint"),
        ('[sources.s3]\nregion = "Frankfurt"', "region"),
        ('[sources.s3]\naddressing_style = "dns"', "addressing_style"),
        ('[sources.s3]\nsecret = "geheim"', "secret"),
        ('[sources.s3]\nrevalidate_after = "5"', "sources.s3.revalidate_after"),
        ('[sources.gs]\ncredentials_file = "google.json"', "sources.gs.credentials_file"),
        ('[sources.az]\naccount = "Images-1"', "account"),
    ],
)
def test_a_value_that_its_key_cannot_have_is_refused(table: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        parse_config(CACHE + table, origin=Path("/etc/underlay.toml"))
    assert "geheim" not in caught.value.message
