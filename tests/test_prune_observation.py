"""What a plan is made from: the caches that can be looked at, the instances that are known, the clock, and open files."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aging import DAY, HOUR, aged, original, overlay, plan, put
from children import NOBODY, start, tell
from machine import MIB, Machine, tree
from storing import laid_out, stage
from underlay.config import Config
from underlay.errors import CacheMissing, InvalidInventory, InventoryUnavailable, LayoutDisagrees, UnknownCache
from underlay.host import Host
from underlay.model import Ephemeral, InstanceRecord
from underlay.plan import Plan, Rules
from underlay.prune.observation import Known, inventory_of, known_instances, make_plan

pytestmark = pytest.mark.component("leases")

A, B = sorted(original(name) for name in ("a", "b"))
OTHER = '[caches.other]\nkind = "base"\npath = "{}"\nkeep_recent = "0s"\nremove_unused_original_minimum_age_seconds = 60\n'


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


def reasons(made: Plan) -> dict[str, list[str]]:
    return {one.file.name: [reason.code for reason in one.reasons] for one in made.verdicts}


def problems(made: Plan) -> set[str]:
    return {problem.code for problem in made.problems}


# ----------------------------------------------------------------------------------------------------------------------- caches


def test_every_cache_is_judged_by_its_own_rules(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    machine = Machine.make(tmp_path, extra=OTHER.format(other))
    host = machine.host()
    put(machine, A, age=HOUR)
    (other / A).write_bytes(b"x")
    aged(other / A, HOUR)

    made = plan(host)

    assert {("base", "young"), ("other", "unused")} == {(one.cache, one.reasons[0].code) for one in made.verdicts}
    assert {machine.base, other} == set(made.clocks)
    assert {"other"} == {one.cache for one in host.plan_prune(cache="other", instances=()).verdicts}


def test_a_cache_that_cannot_be_looked_at_is_a_problem_and_the_others_are_judged(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    machine = Machine.make(tmp_path, extra=OTHER.format(other))
    put(machine, A)
    other.rmdir()

    made = plan(machine.host())

    assert [A] == [one.file.name for one in made.verdicts]
    assert ["cache-missing"] == [problem.code for problem in made.problems if problem.path == other]


def test_a_cache_that_is_named_must_be_one_and_be_there(tmp_path: Path) -> None:
    masters = '[caches.masters]\nkind = "masters"\npath = "{}"\n'.format(tmp_path / "masters")
    machine = Machine.make(tmp_path, extra=masters)
    (tmp_path / "masters").mkdir()
    host = machine.host()

    with pytest.raises(UnknownCache):
        host.plan_prune(cache="nobody's", instances=())
    assert [] == list(host.plan_prune(cache="masters", instances=()).verdicts)
    machine.base.rmdir()
    with pytest.raises(CacheMissing):
        host.plan_prune(cache="base", instances=())


def test_a_cache_with_other_locks_than_it_was_laid_out_for_is_left_alone(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    host = machine.host()
    host.config.caches["base"].prepare()
    put(machine, A)
    (machine.base / ".underlay/format").write_text('{"layout": 1, "nova_locks": "/elsewhere"}')

    made = plan(host)

    assert [] == list(made.verdicts)
    assert {"layout-disagrees"} <= problems(made)
    with pytest.raises(LayoutDisagrees):
        inventory_of(host.config, "base")


def test_masters_do_not_age_where_no_ttl_is_set(tmp_path: Path) -> None:
    masters = '[caches.masters]\nkind = "masters"\npath = "{}"\n'.format(tmp_path / "masters")
    machine = Machine.make(tmp_path, extra=masters)
    (tmp_path / "masters").mkdir()
    (tmp_path / "masters" / "11111111-1111-4111-8111-111111111111").write_bytes(b"x")

    assert [["no-ttl"]] == [[one.code for one in verdict.reasons] for verdict in plan(machine.host(), ahead=999 * DAY).verdicts]


def test_an_inventory_has_the_rules_the_files_and_the_room(machine: Machine, host: Host) -> None:
    put(machine, A)

    found = inventory_of(host.config, "base")

    assert (["base"], [A]) == ([found.cache], [file.name for file in found.files])
    assert host.config.rules["base"] == found.rules
    assert Rules() == found.rules
    free = os.statvfs(machine.base).f_bavail * os.statvfs(machine.base).f_frsize
    assert abs(free - found.free) < 512 * MIB


def test_the_versions_that_a_ref_has_meant_are_claimed_with_it(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    host = machine.host()
    ref = machine.raw_image()
    first = host.ensure(ref)
    machine.raw_image(message="another content")
    second = host.ensure(ref)
    assert first.name != second.name
    record = InstanceRecord(uuid="u", name="n", image_ref=ref)

    made = plan(host, ahead=9 * DAY, instances=[record])

    assert {first.name: ["instance-image"], second.name: ["instance-image"]} == {
        name: codes for name, codes in reasons(made).items() if name in (first.name, second.name)
    }
    assert [] == [one for one in plan(host, ahead=9 * DAY).verdicts if not one.removes]


# -------------------------------------------------------------------------------------------------------------------- instances


class Answers:
    """An inventory that answers, or does not."""

    def __init__(self, answer: Sequence[InstanceRecord] | Exception) -> None:
        self.answer = answer

    def instances(self) -> Sequence[InstanceRecord]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def planned(config: Config, known: Known, *, ahead: float = 0.0) -> Plan:
    return make_plan(config, ["base"], known, now=datetime.now(UTC) + timedelta(seconds=ahead))


@pytest.mark.parametrize("error", [InventoryUnavailable("no answer"), InvalidInventory("record 3: no uuid")])
def test_an_inventory_that_does_not_answer_keeps_every_image_and_lets_leftovers_go(
    machine: Machine, host: Host, error: Exception
) -> None:
    names = [put(machine, name).name for name in (A, f"{A}_5", "swap_1", "ephemeral_1_0706d66")]
    put(machine, f"{B}.part")

    made = planned(host.config, known_instances(Answers(error), host.config))

    code = error.code  # type: ignore[attr-defined]
    assert {name: [code] for name in names} | {f"{B}.part": ["abandoned"]} == reasons(made)
    assert [str(error)] == [problem.detail for problem in made.problems if problem.code == code]


def test_no_inventory_leaves_it_to_disks_and_every_plan_says_so(machine: Machine, host: Host) -> None:
    put(machine, A)
    overlay(machine.instances / "web-1/disk", put(machine, B, content=bytes(MIB)))

    made = planned(host.config, known_instances(None, host.config))

    assert {A: ["unused"], B: ["backing-file"]} == reasons(made)
    assert "no-inventory" in problems(made)


def test_an_inventory_that_answers_claims_its_images(machine: Machine, host: Host) -> None:
    for name in (A, B, "swap_64", "swap_1", "ephemeral_1_0706d66"):
        put(machine, name)
    image = next(image for image in ("a", "b") if original(image) == A)
    record = InstanceRecord(uuid="u", name="n", image_ref=image, swap_mib=(1, 64), ephemerals=(Ephemeral(size_gib=1),))

    made = planned(host.config, known_instances(Answers([record]), host.config))

    assert {
        A: ["instance-image"], B: ["unused"], "swap_64": ["instance-swap"], "swap_1": ["instance-swap"],
        "ephemeral_1_0706d66": ["instance-ephemeral"],
    } == reasons(made)  # fmt: skip
    assert [record] == list(made.records)
    assert "no-inventory" not in problems(made)


# ------------------------------------------------------------------------------------------------------------------------ clock


def test_without_a_time_the_cache_tells_it(machine: Machine, host: Host) -> None:
    put(machine, A, age=DAY - 60)
    put(machine, B, age=DAY + 1)

    made = host.plan_prune(instances=())

    assert {A: ["young"], B: ["unused"]} == reasons(made)
    assert abs((made.clocks[machine.base] - datetime.now(UTC)).total_seconds()) < 60
    assert made.now == made.clocks[machine.base]
    assert set() == problems(made)


def test_a_time_that_is_given_is_the_time_of_every_cache(machine: Machine, host: Host) -> None:
    now = datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC)
    put(machine, A, age=0)

    made = host.plan_prune(now=now, instances=())

    assert ({machine.base: now}, now, [A]) == (
        dict(made.clocks), made.now, [one.file.name for one in made.verdicts if one.removes],
    )  # fmt: skip


@pytest.mark.component("root")
def test_a_clock_that_cannot_be_asked_is_replaced_by_the_hosts(open_directory: Path) -> None:
    machine = Machine.make(open_directory)
    put(machine, A)

    with start(plan_in_a_child, machine.config, user=NOBODY) as child:
        # Who owns nothing here may not ask the kernel who has the file open either.
        assert [f"{A} open-unknown", "end"] == [child.hear(), child.hear()]


def plan_in_a_child(config: str) -> None:
    for one in Host.open(Path(config)).plan_prune(instances=()).verdicts:
        tell(f"{one.file.name} {one.reasons[0].code}")
    tell("end")


# ------------------------------------------------------------------------------------------------------------------- open files


@contextmanager
def opened(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(fd)


def test_only_files_that_would_go_are_asked_for_and_an_open_one_stays(machine: Machine, host: Host) -> None:
    old, young = put(machine, A), put(machine, B, age=0)

    with opened(old), opened(young):
        made = plan(host)

    assert {A: ["open"], B: ["young"]} == reasons(made)
    assert [A] == [one.file.name for one in made.verdicts if one.refresh]


def test_an_open_file_that_a_cap_would_take_lets_the_next_one_go(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, options='max_size = "1MiB"\nforce_raw_images = false')
    for name, age in ((A, 5 * HOUR), (B, 4 * HOUR)):
        put(machine, name, age=age, content=os.urandom(MIB))
        aged(machine.base / name, age)

    with opened(machine.base / A):
        made = plan(machine.host())

    assert {A: ["open", "young"], B: ["over-cap"]} == reasons(made)
    with opened(machine.base / A), opened(machine.base / B):
        assert {A: ["open", "young"], B: ["open", "young"]} == reasons(plan(machine.host()))


def test_a_plan_to_evict_knows_who_has_the_image_open_though_it_is_young(machine: Machine, host: Host) -> None:
    path = put(machine, A, age=0)

    with opened(path):
        assert [("open", False)] == [(one.reasons[0].code, one.removes) for one in host.plan_evict(A).verdicts]

    assert [("asked", True)] == [(one.reasons[0].code, one.removes) for one in host.plan_evict(A).verdicts]


# ----------------------------------------------------------------------------------------------------------------- and all that


def test_a_look_changes_nothing_not_even_where_nothing_of_ours_is_yet(machine: Machine, host: Host) -> None:
    put(machine, A)
    overlay(machine.instances / "web-1/disk", put(machine, B, content=bytes(MIB)))
    before = tree(machine.root)

    made = plan(host)

    assert before == tree(machine.root)
    assert {A: ["unused"], B: ["backing-file"]} == reasons(made)
    assert {os.fspath(machine.instances), f"{machine.instances}/web-1"} == set(made.directories)


def test_a_dead_ingest_is_judged_as_a_leftover(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    store = laid_out(machine.base)
    stage(store, os.urandom(MIB))

    young, old = (plan(machine.host(), ahead=ahead) for ahead in (0, 2 * DAY))

    assert [["young"]] == list(reasons(young).values())
    assert [["abandoned"]] == list(reasons(old).values())


def test_plans_have_ids_of_their_own(host: Host) -> None:
    assert plan(host).id != plan(host).id


def test_what_two_caches_on_one_file_system_share_by_a_link_is_nobodys_use(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    machine = Machine.make(tmp_path, extra=OTHER.format(other))
    path = put(machine, A)
    os.link(path, other / A)
    aged(path, 2 * DAY)

    assert {("base", True), ("other", True)} == {(one.cache, one.removes) for one in plan(machine.host()).verdicts}
    os.link(path, tmp_path / "delivered")
    assert {("base", False), ("other", False)} == {(one.cache, one.removes) for one in plan(machine.host()).verdicts}


def test_an_explanation_is_the_plans_own_verdict(machine: Machine, host: Host) -> None:
    put(machine, A)
    overlay(machine.instances / "web-1/disk", put(machine, B, content=bytes(MIB)))

    (verdict,) = host.explain(B)

    assert [f"backing-file of {machine.instances}/web-1/disk"] == [reason.detail for reason in verdict.reasons]
    assert verdict.goes_at is None
    assert host.explain(A)[0].removes


@pytest.mark.component("root", "tmpfs")
def test_what_one_cache_frees_is_room_for_the_others_of_its_file_system(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    room = mounted("tmpfs", 64 * MIB)
    caches = [room / "one", room / "two"]
    for cache in caches:
        cache.mkdir()
        (cache / A).write_bytes(bytes(4 * MIB))
        aged(cache / A, HOUR)
    watermark = f'free_low = "{57 * MIB}B"\nfree_high = "{58 * MIB}B"\n'
    tables = [f'[caches.{one.name}]\nkind = "base"\npath = "{one}"\n{watermark}' for one in caches]
    (tmp_path / "underlay.toml").write_text(f'[instances]\npath = "{tmp_path}"\n{tables[0]}{tables[1]}', encoding="utf-8")

    made = plan(Host.open(tmp_path / "underlay.toml"))

    assert [("one", "low-space"), ("two", "young")] == [(one.cache, one.reasons[0].code) for one in made.verdicts]
