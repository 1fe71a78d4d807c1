"""Random directories, cleaned up by the real Ironic and by us: the same goes wherever Ironic does what it promises."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from ironic_environment import Ironic, running
from ironic_trees import AHEAD, NAMES, Case, Master, build, cases, names_in

from thorough import thorough
from underlay.openstack.ironic import ImageCache
from underlay.values import replace

pytestmark = pytest.mark.component("ironic", "root", "ext4")
slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
examples = settings(max_examples=thorough(50, 100), suppress_health_check=slow)


@pytest.fixture(scope="module")
def ironic() -> Iterator[Ironic]:
    with running() as one:
        yield one


@pytest.fixture
def room(mounted: Callable[..., Path]) -> Path:
    """A file system of our own: an amount that comes free is told from what all that write there leave free."""
    return mounted("ext4", 256 << 20)


# Where Ironic does otherwise than it says, with what it does: ironic.md, C 4 and C 5. Each is about a clean-up by amount for
# which what has expired is enough.
ONLY_IRONIC_REMOVES: Mapping[str, Callable[[str, Case], bool]] = {
    "what has expired goes in the order of the listing, not the oldest first": lambda name, case: name in case.expired,
}
ONLY_WE_REMOVE: Mapping[str, Callable[[str, Case], bool]] = {
    "what has expired goes in the order of the listing, not the oldest first": lambda name, case: name in case.expired,
    "once the amount is reached, the size is not kept any more": lambda name, case: (
        case.bytes_of(list(case.masters)) > case.size
    ),
}


def _is_promised(case: Case) -> bool:
    """Whether Ironic does what it promises: what has expired is taken whole, or there is none that is wanted."""
    return case.amount is None or (case.amount > 0 and case.bytes_of(case.expired) < case.amount)


def _excepted(name: str, case: Case, reasons: Mapping[str, Callable[[str, Case], bool]]) -> bool:
    return any(applies(name, case) for applies in reasons.values())


def _removed(masters: Path, before: set[str]) -> set[str]:
    return before - names_in(masters)


def by_ironic(ironic: Ironic, case: Case, root: Path, *, whose: str = "ironic") -> set[str]:
    """What Ironic's clean-up removes; of ours within Ironic with ``whose="underlay"``."""
    ahead = AHEAD if whose == "ironic" else 0.0
    masters = build(case, root, ahead=ahead)
    before = names_in(masters)
    answer = ironic.clean_up(whose, masters, amount=case.amount, size=case.size, ttl=case.ttl, ahead=ahead)
    assert None is answer["error"], answer["traceback"]
    return _removed(masters, before)


def by_underlay(case: Case, root: Path) -> set[str]:
    masters = build(case, root)
    before = names_in(masters)
    ImageCache(str(masters), case.size, case.ttl).clean_up(case.amount)
    return _removed(masters, before)


@examples
@given(case=cases(strange=False))
def test_the_same_goes_wherever_ironic_does_what_it_promises(ironic: Ironic, room: Path, case: Case) -> None:
    with tempfile.TemporaryDirectory(dir=room) as scratch:
        theirs, ours = by_ironic(ironic, case, Path(scratch) / "ironic"), by_underlay(case, Path(scratch) / "underlay")
    event(f"Ironic removes {min(len(theirs), 3)}, Underlay {min(len(ours), 3)}")
    event("as promised" if _is_promised(case) else "not as promised")
    assert case.promised() == ours
    if _is_promised(case):
        assert theirs == ours
    assert [] == [name for name in theirs - ours if not _excepted(name, case, ONLY_IRONIC_REMOVES)]
    assert [] == [name for name in ours - theirs if not _excepted(name, case, ONLY_WE_REMOVE)]


@settings(examples, max_examples=40)
@given(case=cases(strange=False))
def test_within_ironic_the_same_goes_as_without(ironic: Ironic, room: Path, case: Case) -> None:
    with tempfile.TemporaryDirectory(dir=room) as scratch:
        within = by_ironic(ironic, case, Path(scratch) / "within", whose="underlay")
    assert case.promised() == within


@settings(examples, max_examples=60)
@given(case=cases(strange=True))
def test_whatever_else_lies_there_stays_and_changes_nothing(room: Path, case: Case) -> None:
    with tempfile.TemporaryDirectory(dir=room) as scratch:
        assert case.promised() == by_underlay(case, Path(scratch) / "underlay")


# ------------------------------------------------------------------------------------- what Ironic does, so that it is known

OLD, NEW = Master(age=9000, blocks=1), Master(age=1000, blocks=1)


def test_ironic_removes_a_stranger_s_file_and_we_do_not(ironic: Ironic, room: Path) -> None:
    case = Case(masters={NAMES[0]: OLD}, strangers=("snponly.efi", ".hidden"), size=1 << 40, ttl=5000, amount=None)
    assert {NAMES[0], "snponly.efi", ".hidden"} == by_ironic(ironic, case, room / "ironic")
    assert {NAMES[0]} == by_underlay(case, room / "underlay")


def test_a_link_to_nothing_ends_ironic_s_clean_up_and_not_ours(ironic: Ironic, room: Path) -> None:
    case = Case(masters={NAMES[0]: OLD}, links={NAMES[1]: "nowhere"}, size=1 << 40, ttl=5000, amount=None)
    masters = build(case, room / "ironic", ahead=AHEAD)
    answer = ironic.clean_up("ironic", masters, amount=None, size=case.size, ttl=case.ttl, ahead=AHEAD)
    assert "FileNotFoundError" == answer["error"]
    assert {NAMES[0]} == by_underlay(case, room / "underlay")


def test_the_size_is_kept_though_the_amount_was_reached_with_what_had_expired(ironic: Ironic, room: Path) -> None:
    case = Case(masters={NAMES[0]: OLD, NAMES[1]: NEW}, size=0, ttl=5000, amount=1)
    assert {NAMES[0]} == by_ironic(ironic, case, room / "ironic")
    assert {NAMES[0], NAMES[1]} == by_underlay(case, room / "underlay")


def test_an_amount_of_nothing_removes_nothing_but_what_is_over_the_size(ironic: Ironic, room: Path) -> None:
    case = Case(masters={NAMES[0]: OLD, NAMES[1]: replace(OLD, age=8000)}, size=1 << 40, ttl=5000, amount=0)
    assert 1 == len(by_ironic(ironic, case, room / "ironic"))
    assert set() == by_underlay(case, room / "underlay")
