"""The conformance suite that every `underlay.contracts.DiskBackend` must pass: ours and third parties'.

A `Stage` sets up a backend and the storage behind it, has a guest's eyes and hands, and makes trouble. What a kind of storage
cannot have is said by the stage with a reason, and the cases that need it are not made; every other one is to pass. What a
backend's traits say that it cannot, the cases hold it to: it has to refuse that and change nothing. With pytest::

    @pytest.mark.parametrize("case", cases(MyStage), ids=str)
    def test_the_backend_keeps_its_contract(case: Case, stage: MyStage) -> None:
        case.run(stage)

Nothing here needs pytest: a case is a function of a stage, and a broken contract is an AssertionError that says what is wanted.
qemu-img is needed, and qemu-io by `guest_writes`.
"""

from underlay.testing.disk_suite import changing, cloning, creating, failing
from underlay.testing.disk_suite.case import Case
from underlay.testing.disk_suite.guest import guest_bytes, guest_writes
from underlay.testing.disk_suite.stage import ABILITIES, Away, Cloned, Full, Killed, Opened, Stage, Trouble

__all__ = [
    "ABILITIES",
    "CASES",
    "Away",
    "Case",
    "Cloned",
    "Full",
    "Killed",
    "Opened",
    "Stage",
    "Trouble",
    "cases",
    "guest_bytes",
    "guest_writes",
    "impossible",
]

CASES: tuple[Case, ...] = (*creating.CASES, *changing.CASES, *cloning.CASES, *failing.CASES)
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
