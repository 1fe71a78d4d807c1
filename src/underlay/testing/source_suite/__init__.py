"""The conformance suite that every `underlay.contracts.ImageSource` must pass: ours and third parties'.

A `Stage` sets up a source and the place from which it fetches, and makes trouble there. What a kind of place cannot have is
said by the stage with a reason, and the cases that need it are not made; every other one is to pass. With pytest::

    @pytest.mark.parametrize("case", cases(MyStage), ids=str)
    def test_the_source_keeps_its_contract(case: Case, stage: MyStage) -> None:
        case.run(stage)

Nothing here needs pytest: a case is a function of a stage, and a broken contract is an AssertionError that says what is wanted.
"""

from underlay.testing.source_suite import arriving, changing, describing, failing, opening
from underlay.testing.source_suite.case import Case
from underlay.testing.source_suite.stage import (
    ABILITIES,
    Announced,
    Away,
    Cut,
    Empty,
    Forbidden,
    Replaced,
    Silent,
    Slow,
    Stage,
    Stalled,
    Trouble,
    Withdrawn,
)

__all__ = [
    "ABILITIES",
    "CASES",
    "Announced",
    "Away",
    "Case",
    "Cut",
    "Empty",
    "Forbidden",
    "Replaced",
    "Silent",
    "Slow",
    "Stage",
    "Stalled",
    "Trouble",
    "Withdrawn",
    "cases",
    "impossible",
]

CASES: tuple[Case, ...] = (*describing.CASES, *opening.CASES, *changing.CASES, *failing.CASES, *arriving.CASES)
"""All of them."""


def cases(stage: type[Stage]) -> list[Case]:
    """The cases that this kind of stage must pass: all but the `impossible` ones.

    Raises:
        ValueError: the stage says of something unknown that it cannot have it, or gives no reason.
    """
    left_out = impossible(stage)
    return [case for case in CASES if case not in left_out]


def impossible(stage: type[Stage]) -> dict[Case, str]:
    """The cases that this kind of stage cannot set up, each with the reasons.

    Raises:
        ValueError: as for `cases`.
    """
    for ability, reason in stage.cannot.items():
        if ability not in ABILITIES:
            raise ValueError(f"{stage.__name__} cannot have {ability!r}, which is none of the suite's abilities")
        if not reason.strip():
            raise ValueError(f"{stage.__name__} cannot have {ability.__name__}, and does not say why")
    return {
        case: "; ".join(reason for ability, reason in stage.cannot.items() if ability in case.needs)
        for case in CASES
        if case.needs & stage.cannot.keys()
    }
