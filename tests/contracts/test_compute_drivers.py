"""Every compute driver that we ship passes the shipped conformance suite."""

import pytest
from compute_stages import FakeStage

from underlay.testing.compute_suite import CASES, Ability, Case, cases, impossible


@pytest.mark.parametrize("case", cases(FakeStage), ids=str)
def test_the_fake_keeps_its_contract(case: Case) -> None:
    case.run(FakeStage())


def test_the_fake_can_do_everything() -> None:
    assert list(CASES) == cases(FakeStage)
    assert {} == impossible(FakeStage)


def test_cases_may_share_a_stage() -> None:
    stage = FakeStage()
    for case in cases(FakeStage):
        case.run(stage)
    assert [] == stage.driver.list_instances()


def test_every_ability_is_asked_for_by_a_case() -> None:
    assert set(Ability) == {need for case in CASES for need in case.needs}
