"""Logins as docker and podman keep them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from underlay.errors import ConfigError
from underlay.refs import parse_ref
from underlay.sources.oci.logins import Login, find_login
from underlay.sources.oci.place import Place

SECRET = "open:sesame"


def encoded(user: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def found(tmp_path: Path, document: dict[str, Any], ref: str = "oci://host:5000/a/b:1") -> Login | None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(document))
    return find_login([tmp_path / "absent", file], Place.of(parse_ref(ref)))


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("host:5000", "oci://host:5000/a/b"),
        ("HOST:5000", "oci://host:5000/a/b"),
        ("http://host:5000", "oci://host:5000/a/b"),
        ("https://host:5000/v2/", "oci://host:5000/a/b"),
        ("https://host", "oci://host/a"),
        ("host:443", "oci://host/a"),
        ("https://index.docker.io/v1/", "oci://docker.io/debian"),
        ("docker.io", "oci://index.docker.io/library/debian"),
        ("host/a", "oci://host/a/b"),
        ("host/a/b", "oci://host/a/b"),
    ],
)
def test_a_login_is_found_by_the_names_that_docker_and_podman_file_it_under(tmp_path: Path, name: str, ref: str) -> None:
    login = found(tmp_path, {"auths": {name: encoded("user")}}, ref)

    assert Login(origin=f"of {name} in {tmp_path / 'config.json'}", user="user", password=SECRET) == login
    assert SECRET not in repr(login)


@pytest.mark.parametrize("name", ["host", "host:5001", "other:5000", "host:5000/a/c", "host:5000/a/b/c", "host:5000/b", ""])
def test_a_login_for_something_else_is_not_taken(tmp_path: Path, name: str) -> None:
    assert None is found(tmp_path, {"auths": {name: encoded("user")}})


def test_the_closest_namespace_counts(tmp_path: Path) -> None:
    names, users = ["host:5000", "host:5000/a", "host:5000/a/b"], []
    for count in (3, 2, 1):
        login = found(tmp_path, {"auths": {name: encoded(name.replace(":", "-")) for name in names[:count]}})
        users.append(login and login.user)

    assert ["host-5000/a/b", "host-5000/a", "host-5000"] == users


def test_the_first_file_with_a_login_counts(tmp_path: Path) -> None:
    files = []
    for name, document in (
        ("none", {}),
        ("one", {"auths": {"host": encoded("one")}}),
        ("two", {"auths": {"host": encoded("two")}}),
    ):
        files.append(tmp_path / name)
        files[-1].write_text(json.dumps(document))

    login = find_login(files, Place.of(parse_ref("oci://host/a")))

    assert login is not None
    assert "one" == login.user


@pytest.mark.parametrize(
    ("document", "unusable"),
    [
        ({"auths": {"host:5000": {"auth": "", "identitytoken": "t0ken"}}}, "identity token"),
        ({"auths": {"host:5000": {"auth": "no base64!"}}}, "not USER:PASSWORD in base64"),
        ({"auths": {"host:5000": {"auth": base64.b64encode(b"user").decode()}}}, "not USER:PASSWORD in base64"),
        ({"auths": {"host:5000": {"auth": base64.b64encode(b"\xff:x").decode()}}}, "not USER:PASSWORD in base64"),
        ({"auths": {"host:5000": {}}, "credsStore": "pass"}, "the program docker-credential-pass keeps it"),
        ({"credHelpers": {"host:5000": "ecr-login"}}, "the program docker-credential-ecr-login keeps it"),
    ],
)
def test_a_login_that_is_there_and_cannot_be_used_says_why(tmp_path: Path, document: dict[str, Any], unusable: str) -> None:
    login = found(tmp_path, document)

    assert login is not None
    assert login.unusable is not None
    assert unusable in login.unusable


@pytest.mark.parametrize("document", [{}, {"auths": None}, {"auths": {"host:5000": {}}}, {"credsStore": "pass", "auths": {}}])
def test_an_empty_entry_is_no_login(tmp_path: Path, document: dict[str, Any]) -> None:
    assert None is found(tmp_path, document)


def test_a_user_and_a_password_may_be_written_out(tmp_path: Path) -> None:
    login = found(tmp_path, {"auths": {"host:5000": {"username": "user", "password": SECRET}}})

    assert login is not None
    assert ("user", SECRET) == (login.user, login.password)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"auths": []}', b'{"auths": {"host": {"auth": 1}}}', b"\xff", b"[" * 100_000]
)
def test_a_file_that_is_no_such_file_is_told_without_its_content(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=f"the registries' logins in {file} are no JSON of docker's form"):
        find_login([file], Place.of(parse_ref("oci://host/a")))


def test_a_directory_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        find_login([tmp_path], Place.of(parse_ref("oci://host/a")))
