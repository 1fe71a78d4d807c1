"""Our image sources pass the shipped conformance suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_stages import FakeStage, FileStage, HttpStage
from streams_stage import LOGIN, StreamStage

from children import NOBODY, start
from signing import GOOD, Keys
from streams import Stream
from underlay.testing.httpserver import serving
from underlay.testing.relay import relaying
from underlay.testing.source_suite import CASES, Case, Forbidden, Replaced, cases, impossible


@pytest.mark.parametrize("case", cases(FakeStage), ids=str)
def test_the_fake_keeps_the_contract(case: Case) -> None:
    case.run(FakeStage())


@pytest.mark.parametrize("case", cases(FileStage), ids=str)
def test_files_keep_the_contract(case: Case, short_directory: Path) -> None:
    if Forbidden in case.needs and os.geteuid() == 0:  # root may read every file
        os.chown(short_directory, NOBODY, NOBODY)
        with start(run_as_another_user, case, short_directory, user=NOBODY) as child:
            child.end()
    else:
        case.run(FileStage.make(short_directory))


@pytest.mark.parametrize("case", [case for case in cases(FileStage) if Replaced in case.needs], ids=str)
def test_files_that_are_rewritten_in_their_place_keep_the_contract(case: Case, short_directory: Path) -> None:
    case.run(FileStage.make(short_directory, rewrites=True))


def run_as_another_user(name: str, directory: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    case.run(FileStage.make(Path(directory)))


@pytest.fixture(params=[1, 3], ids=["in-one-request", "in-ranges"])
def http(request: pytest.FixtureRequest) -> Iterator[HttpStage]:
    with serving({}) as server, relaying(server.base) as relay:
        yield HttpStage(server=server, relay=relay, parallel=request.param)


@pytest.mark.parametrize("case", cases(HttpStage), ids=str)
def test_web_servers_keep_the_contract(case: Case, http: HttpStage) -> None:
    case.run(http)


@pytest.mark.parametrize("case", cases(StreamStage), ids=str)
def test_streams_keep_the_contract(case: Case) -> None:
    with serving({}) as server, relaying(server.base) as relay:
        case.run(StreamStage(Stream(server, credentials=LOGIN), relay))


@pytest.mark.component("gpg", "gpgv")
@pytest.mark.parametrize("case", cases(StreamStage), ids=str)
def test_signed_streams_keep_the_contract(case: Case, keys: Keys, tmp_path: Path) -> None:
    keyring = keys.keyring(tmp_path / "keyring.gpg", GOOD)
    with serving({}) as server, relaying(server.base) as relay:
        stream = Stream(server, sign=lambda text: keys.inline(text, GOOD), credentials=LOGIN)
        case.run(StreamStage(stream, relay, keyrings=[keyring]))


@pytest.mark.parametrize("stage", [FakeStage, FileStage, HttpStage, StreamStage])
def test_every_case_is_run_or_is_impossible_for_a_reason(stage: type[FakeStage | FileStage | HttpStage | StreamStage]) -> None:
    left_out = impossible(stage)
    assert set(CASES) == {*cases(stage), *left_out}
    assert all(left_out.values())
