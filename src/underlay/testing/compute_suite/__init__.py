"""The conformance suite that every `underlay.compute.ComputeDriver` must pass: ours and third parties'.

A `Stage` sets up a driver with its hypervisor, and what instances are made from. What the driver cannot do, or this machine, is
said by the stage with a reason, and the cases that need it are not made; every other one is to pass. With pytest::

    @pytest.mark.parametrize("case", cases(MyStage), ids=str)
    def test_the_driver_keeps_its_contract(case: Case, stage: MyStage) -> None:
        case.run(stage)

Nothing here needs pytest: a case is a function of a stage, and a broken contract is an AssertionError that says what is wanted.
"""

from underlay.testing.compute_suite import attaching, beginning, hosting, moving, powering, telling
from underlay.testing.compute_suite.case import Case
from underlay.testing.compute_suite.stage import Ability, Stage

__all__ = ["CASES", "Ability", "Case", "Stage", "cases", "impossible"]

CASES: tuple[Case, ...] = (
    *beginning.CASES,
    *powering.CASES,
    *attaching.CASES,
    *telling.CASES,
    *moving.CASES,
    *hosting.CASES,
)
"""All of them."""


def cases(stage: type[Stage]) -> list[Case]:
    """The cases that this kind of stage must pass: all but the `impossible` ones.

    Raises:
        ValueError: the stage says of something unknown that it cannot do it, or gives no reason.
    """
    left_out = impossible(stage)
    return [case for case in CASES if case not in left_out]


def impossible(stage: type[Stage]) -> dict[Case, str]:
    """The cases that this kind of stage cannot set up, each with the reasons.

    Raises:
        ValueError: as for `cases`.
    """
    for ability, reason in stage.cannot.items():
        if not isinstance(ability, Ability):
            raise ValueError(f"{stage.__name__} cannot do {ability!r}, which is none of the suite's abilities")
        if not reason.strip():
            raise ValueError(f"{stage.__name__} cannot do {ability.name}, and does not say why")
    return {
        case: "; ".join(reason for ability, reason in stage.cannot.items() if ability in case.needs)
        for case in CASES
        if case.needs & stage.cannot.keys()
    }
