"""Logins as docker and podman keep them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from underlay.errors import ConfigError
from underlay.refs import parse_ref
from underlay.run import SEARCH_PATH
from underlay.sources.oci.login import Login
from underlay.sources.oci.logins import find_login
from underlay.sources.oci.place import Place

SECRET = "open:sesame"


def encoded(user: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def found(tmp_path: Path, document: dict[str, Any], ref: str = "oci://host:5000/a/b:1") -> Login | None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(document))
    return find_login([tmp_path / "absent", file], Place.of(parse_ref(ref)), environment=programs(tmp_path))


def programs(tmp_path: Path, **variables: str) -> dict[str, str]:
    """The environment of programs that keep logins, which are in a directory of the test."""
    return {"PATH": f"{tmp_path / 'bin'}:{SEARCH_PATH}", **variables}


def install(tmp_path: Path, name: str, script: str) -> None:
    """A real program that keeps logins; it notes its arguments, its input and what it found in its environment."""
    program = tmp_path / "bin" / f"docker-credential-{name}"
    program.parent.mkdir(exist_ok=True)
    noted = tmp_path / "noted"
    program.write_text(f'#!/bin/sh\nserver=$(cat)\necho "$* $server $OF_A_TEST" >>{noted}\n{script}\n')
    program.chmod(0o755)


def noted(tmp_path: Path) -> list[str]:
    return (tmp_path / "noted").read_text().splitlines()


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

    login = find_login(files, Place.of(parse_ref("oci://host/a")), environment=programs(tmp_path))

    assert login is not None
    assert "one" == login.user


@pytest.mark.parametrize(
    ("document", "unusable"),
    [
        ({"auths": {"host:5000": {"auth": "no base64!"}}}, "not USER:PASSWORD in base64"),
        ({"auths": {"host:5000": {"auth": base64.b64encode(b"user").decode()}}}, "not USER:PASSWORD in base64"),
        ({"auths": {"host:5000": {"auth": base64.b64encode(b"\xff:x").decode()}}}, "not USER:PASSWORD in base64"),
        ({"auths": {"host:5000": {}}, "credsStore": "absent"}, "the program is not installed"),
        ({"credHelpers": {"host:5000": "absent"}}, "the program is not installed"),
        ({"credHelpers": {"host:5000": "../../bin/sh"}}, "no program can be called so"),
        ({"credHelpers": {"host:5000": "absent"}, "auths": {"host:5000": encoded("written")}}, "the program is not installed"),
    ],
)
def test_a_login_that_is_there_and_cannot_be_used_says_why(tmp_path: Path, document: dict[str, Any], unusable: str) -> None:
    login = found(tmp_path, document)

    assert login is not None
    assert login.unusable is not None
    assert unusable in login.unusable


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"auths": None},
        {"auths": {"host:5000": {}}},
        {"credsStore": "absent", "auths": {}},
        {"credsStore": ""},
        {"credHelpers": {"host:5000": ""}},
        {"credHelpers": {"host:5000": ""}, "credsStore": "absent", "auths": {"host:5000": {}}},
    ],
)
def test_an_empty_entry_is_no_login(tmp_path: Path, document: dict[str, Any]) -> None:
    assert None is found(tmp_path, document)


def test_a_user_and_a_password_may_be_written_out(tmp_path: Path) -> None:
    login = found(tmp_path, {"auths": {"host:5000": {"username": "user", "password": SECRET}}})

    assert login is not None
    assert ("user", SECRET) == (login.user, login.password)


def test_an_identity_token_is_found_and_in_no_repr(tmp_path: Path) -> None:
    login = found(tmp_path, {"auths": {"host:5000": {"auth": "", "identitytoken": SECRET}}})

    assert login is not None
    assert (None, SECRET) == (login.unusable, login.identity_token)
    assert SECRET not in repr(login)


# ------------------------------------------------------------------------------------------------ programs that keep logins

ANSWER = f'echo \'{{"ServerURL": "x", "Username": "user", "Secret": "{SECRET}"}}\''


@pytest.mark.parametrize(
    ("document", "asked"),
    [
        ({"credHelpers": {"host:5000": "test"}}, "host:5000"),
        ({"credHelpers": {"host:5000/a": "test", "host:5000": "other"}}, "host:5000/a"),
        ({"credHelpers": {"https://host:5000": "test"}, "auths": {"host:5000": {}}}, "https://host:5000"),
        ({"credsStore": "test", "auths": {"https://host:5000/v2/": {}}}, "https://host:5000/v2/"),
        ({"credsStore": "test"}, "host:5000"),
        ({"credsStore": "test", "credHelpers": {"other": "absent"}}, "host:5000"),
    ],
)
def test_a_program_is_asked_for_the_login_by_the_name_that_it_is_filed_under(
    tmp_path: Path, document: dict[str, Any], asked: str
) -> None:
    install(tmp_path, "test", ANSWER)

    login = found(tmp_path, document)

    assert login is not None
    assert ("user", SECRET, None) == (login.user, login.password, login.unusable)
    assert [f"get {asked}"] == [line.rstrip() for line in noted(tmp_path)]
    assert SECRET not in repr(login)


def test_docker_hub_is_called_as_docker_calls_it(tmp_path: Path) -> None:
    install(tmp_path, "test", ANSWER)

    assert None is not found(tmp_path, {"credsStore": "test"}, "oci://docker.io/library/debian")
    assert "get https://index.docker.io/v1/" == noted(tmp_path)[0].rstrip()


@pytest.mark.parametrize("program", [{"credsStore": "test"}, {"credHelpers": {"host:5000": "test"}}])
@pytest.mark.parametrize("name", ["host:5000", "https://host:5000/v2/", "host:5000/a/b"])
def test_a_program_comes_before_a_login_that_stands_in_the_file(tmp_path: Path, program: dict[str, Any], name: str) -> None:
    install(tmp_path, "test", ANSWER)

    login = found(tmp_path, {"auths": {name: encoded("written")}, **program})

    assert login is not None
    assert "user" == login.user


def test_the_program_for_one_registry_comes_before_that_for_all(tmp_path: Path) -> None:
    install(tmp_path, "test", ANSWER)
    install(tmp_path, "other", ANSWER.replace('"user"', '"other"'))

    login = found(tmp_path, {"credHelpers": {"host:5000": "other"}, "credsStore": "test"})

    assert login is not None
    assert "other" == login.user


def test_for_a_registry_without_a_program_the_file_alone_counts(tmp_path: Path) -> None:
    install(tmp_path, "test", ANSWER)

    login = found(
        tmp_path, {"credHelpers": {"host:5000": ""}, "credsStore": "test", "auths": {"host:5000": encoded("written")}}
    )

    assert login is not None
    assert "written" == login.user
    assert not (tmp_path / "noted").exists()


def test_a_login_that_stands_in_the_file_counts_where_the_program_for_all_is_not_installed(tmp_path: Path) -> None:
    login = found(tmp_path, {"credsStore": "absent", "auths": {"host:5000": encoded("written")}})

    assert login is not None
    assert ("written", None) == (login.user, login.unusable)


@pytest.mark.parametrize(
    ("program", "user"), [({"credsStore": "test"}, "written"), ({"credHelpers": {"host:5000": "test"}}, None)]
)
def test_only_a_registrys_own_program_keeps_the_file_from_being_asked(
    tmp_path: Path, program: dict[str, Any], user: str | None
) -> None:
    install(tmp_path, "test", "echo 'credentials not found in native keychain'; exit 1")

    login = found(tmp_path, {"auths": {"host:5000": encoded("written")}, **program})

    assert user == (None if login is None else login.user)


def test_a_program_may_keep_an_identity_token(tmp_path: Path) -> None:
    install(tmp_path, "test", ANSWER.replace('"user"', '"<token>"'))

    login = found(tmp_path, {"credsStore": "test"})

    assert login is not None
    assert (SECRET, "") == (login.identity_token, login.password)


def test_a_program_is_given_the_environment_that_it_needs(tmp_path: Path) -> None:
    install(tmp_path, "test", ANSWER)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"credsStore": "test"}))

    find_login([file], Place.of(parse_ref("oci://host/a")), environment=programs(tmp_path, OF_A_TEST="given"))

    assert ["get host given"] == noted(tmp_path)


def test_a_login_that_a_program_does_not_have_is_none(tmp_path: Path) -> None:
    install(tmp_path, "test", "echo 'credentials not found in native keychain'; exit 1")

    assert None is found(tmp_path, {"credsStore": "test"})


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (f"echo '{SECRET}'; echo '{SECRET}' >&2; exit 3", "ended with status 3"),
        (f"echo '{SECRET}'", "no JSON of docker's form"),
        (f'echo \'{{"Secret": "{SECRET}"}}\'', "no JSON of docker's form"),
        ("head -c 3000000 /dev/zero", "no JSON of docker's form"),
        ("exit 0", "no JSON of docker's form"),
    ],
)
def test_a_program_that_gives_no_login_is_told_without_what_it_printed(tmp_path: Path, script: str, why: str) -> None:
    install(tmp_path, "test", script)

    login = found(tmp_path, {"credHelpers": {"host:5000": "test"}})

    assert login is not None
    assert login.unusable is not None
    assert why in login.unusable
    assert "docker-credential-test" in login.origin
    assert SECRET not in f"{login.unusable} {login.origin} {login!r}"


# ------------------------------------------------------------------------------------------------------- files that are none


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"auths": []}', b'{"auths": {"host": {"auth": 1}}}', b"\xff", b"[" * 100_000]
)
def test_a_file_that_is_no_such_file_is_told_without_its_content(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=f"the registries' logins in {file} are no JSON of docker's form"):
        find_login([file], Place.of(parse_ref("oci://host/a")), environment=programs(tmp_path))


def test_a_directory_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        find_login([tmp_path], Place.of(parse_ref("oci://host/a")), environment=programs(tmp_path))
