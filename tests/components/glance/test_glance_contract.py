"""The source of Glance passes the shipped conformance suite, in front of the real Glance."""

import os
from collections.abc import Iterator

import pytest
from glance_people import Person
from glance_stage import GlanceStage, made_reader, reading

from underlay.testing.relay import relaying
from underlay.testing.source_suite import Case, cases

pytest_plugins = ["glance_fixtures"]
pytestmark = [
    pytest.mark.component("glance", "openstacksdk"),
    # The library warns of what it does itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="session")
def stage(alice: Person, admin: Person, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlanceStage]:
    """A stage for all cases: to ask Keystone for a user and a token takes its time."""
    reader = made_reader(admin, tmp_path_factory.mktemp("reader"))
    with relaying(alice.glance) as relay:
        yield GlanceStage(alice=alice, reader=reader, relay=relay, source=reading(relay))


@pytest.mark.parametrize("case", cases(GlanceStage), ids=str)
def test_images_of_glance_keep_the_contract(case: Case, stage: GlanceStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(stage.reader.clouds_yaml))
    case.run(stage)
