"""A plan is applied to a real cache: step by step, with everything that may happen between the steps."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aging import DAY, HOUR, aged, assert_opens, original, outcome, overlay, plan, pruned, put
from children import PATIENCE, Child, start, tell, told
from machine import MIB, Machine, tree
from storing import REF, stage
from underlay import locks
from underlay.config import Config
from underlay.contracts import Observer
from underlay.errors import PlanApplied
from underlay.files import write_durably
from underlay.host import Host
from underlay.model import InstanceRecord
from underlay.naming import ref_key
from underlay.plan import Plan, Report
from underlay.store import Store, eviction, images, leases, roots
from underlay.testing.fakes import Recorder
from underlay.values import replace

pytestmark = pytest.mark.component("leases")

A, B, C = sorted(original(name) for name in ("a", "b", "c"))
RECORD = InstanceRecord(uuid="11111111-1111-4111-8111-111111111111", name="instance-1")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    host = machine.host()
    store_of(host).prepare()
    return host


def store_of(host: Host) -> Store:
    return host.config.caches["base"]


def gone_and_why(host: Host, made: Plan) -> dict[str, str]:
    return outcome(host.apply(made))


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def assert_kept(host: Host, name: str) -> None:
    """The file is in the cache and nowhere else, and a later pass still works."""
    assert (store_of(host).root / name).is_file()
    assert [] == os.listdir(store_of(host).paths.trash)


# ------------------------------------------------------------------------------------------------------------------ all is well


def test_what_is_old_and_unused_goes_with_its_marker_and_everybody_is_told(machine: Machine) -> None:
    heard = Recorder()
    host = machine.host(heard)
    store_of(host).prepare()
    path = put(machine, A, content=os.urandom(MIB))
    images.mark_used(store_of(host), A, at_ns=path.stat().st_mtime_ns)

    report = host.apply(plan(host))

    assert {A: "removed"} == outcome(report)
    assert ([path], MIB, 0) == (list(report.removed), report.freed, report.shortfall)
    assert [] == os.listdir(store_of(host).paths.used)
    assert not path.exists()
    (event,) = [event for event in heard.events if event.code == "removed"]
    assert {"path": str(path), "reason": "unused", "freed": MIB} == event.fields


def test_every_kind_of_file_goes_by_its_own_age_and_strangers_stay(machine: Machine, host: Host) -> None:
    old = [
        A,
        f"{A}.qcow2",
        f"{A}_20",
        f"{A}_5",
        f"{A}_sm",
        "swap_512",
        "ephemeral_1_0706d66",
        f"{A}.part",
        "swap_512.converted",
    ]
    strangers = ["00000001", f"{A}_resized", "notes", f"{A}.bak"]
    for name in (*old, *strangers):
        put(machine, name)
    young = [put(machine, name, age=0.9 * DAY).name for name in (B, "swap_1", "ephemeral_2_0706d66", f"{B}.part")]
    put(machine, f"{B}_20", age=1.1 * HOUR)

    found = pruned(host)

    assert dict.fromkeys([*old, f"{B}_20"], "removed") | dict.fromkeys(young, "young") == found
    assert sorted([*strangers, *young, ".underlay"]) == sorted(os.listdir(machine.base))


def test_more_files_than_are_taken_at_a_time_all_go(machine: Machine, host: Host) -> None:
    names = [put(machine, original(str(number))).name for number in range(70)]

    assert dict.fromkeys(names, "removed") == pruned(host)
    assert [".underlay"] == os.listdir(machine.base)


def test_a_plan_is_applied_once(machine: Machine, host: Host) -> None:
    made = plan(host)
    host.apply(made)
    put(machine, A)

    with pytest.raises(PlanApplied, match=made.id):
        host.apply(made)

    assert_kept(host, A)


def test_the_plans_now_is_the_now_of_both_steps(machine: Machine, host: Host) -> None:
    put(machine, A, age=0)
    put(machine, B, age=2 * DAY)

    assert {A: "removed", B: "removed"} == pruned(host, ahead=2 * DAY)
    put(machine, B, age=2 * DAY)
    assert {B: "future"} == pruned(host, ahead=-3 * DAY)


# -------------------------------------------------------------------------------------------------- changed since it was judged


CHANGES: dict[str, Callable[[Machine, Host], object]] = {
    "used": lambda machine, host: images.mark_used(store_of(host), A),
    "marker": lambda machine, host: store_of(host).paths.used_marker(A).touch(),
    "touched": lambda machine, host: os.utime(machine.base / A),
    "touched-backwards": lambda machine, host: aged(machine.base / A, 9 * DAY),
    "grown": lambda machine, host: put(machine, A, content=bytes(MIB)),
    "linked": lambda machine, host: os.link(machine.base / A, machine.root / "delivered"),
    "replaced": lambda machine, host: aged(machine.root / put(machine, B).rename(machine.root / "new"), 2 * DAY).rename(
        machine.base / A
    ),
    "mode": lambda machine, host: (machine.base / A).chmod(0o600),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_it_was_judged_stays(machine: Machine, host: Host, change: str) -> None:
    put(machine, A)
    made = plan(host)

    CHANGES[change](machine, host)

    assert {A: "changed"} == gone_and_why(host, made)
    assert_kept(host, A)


@pytest.mark.parametrize("by", ["nothing", "directory", "link"])
def test_a_file_that_somebody_else_removed_is_told_as_gone(machine: Machine, host: Host, by: str) -> None:
    path = put(machine, A)
    made = plan(host)
    path.unlink()
    if by == "directory":
        path.mkdir()
    elif by == "link":
        path.symlink_to(machine.root)

    report = host.apply(made)

    assert {A: "gone"} == outcome(report)
    assert [] == list(report.removed)
    assert (by != "nothing") == os.path.lexists(path)


# --------------------------------------------------------------------------------------------------- needed since it was judged


def disk_of(machine: Machine, directory: str = "web-1", name: str = "disk") -> Path:
    return machine.instances / directory / name


def into_known_directory(machine: Machine) -> Path:
    return overlay(disk_of(machine, "known", "disk.eph1"), machine.base / A)


def into_new_directory(machine: Machine) -> Path:
    return overlay(disk_of(machine, "new"), machine.base / A)


def into_renamed_directory(machine: Machine) -> Path:
    (machine.instances / "known").rename(machine.instances / "known_resize")
    return overlay(disk_of(machine, "known_resize"), machine.base / A)


def into_a_directory_within(machine: Machine) -> Path:
    return overlay(disk_of(machine, "known/snapshots/1"), machine.base / A)


def in_place_of_another(machine: Machine) -> Path:
    made = overlay(machine.root / "made", machine.base / A)
    return made.rename(disk_of(machine, "known"))


def with_two_levels(machine: Machine) -> Path:
    middle = overlay(machine.root / "middle.qcow2", machine.base / A)
    return overlay(disk_of(machine, "known", "disk.local"), middle, backing_format="qcow2")


def by_a_relative_name(machine: Machine) -> Path:
    return overlay(disk_of(machine, "known", "disk.rescue"), f"../../base/{A}")


def by_json(machine: Machine) -> Path:
    node = {"driver": "raw", "file": {"driver": "file", "filename": str(machine.base / A)}}
    return overlay(disk_of(machine, "known", "disk.json"), f"json:{json.dumps(node)}")


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize(
    "make",
    [
        into_known_directory, into_new_directory, into_renamed_directory, into_a_directory_within, in_place_of_another,
        with_two_levels, by_a_relative_name, by_json,
    ],
)  # fmt: skip
def test_an_overlay_that_was_made_after_the_plan_keeps_its_base(
    machine: Machine, host: Host, make: Callable[[Machine], Path]
) -> None:
    put(machine, A, content=bytes(MIB))
    put(machine, B)
    disk_of(machine, "known").parent.mkdir()
    disk_of(machine, "known").write_bytes(b"raw")
    made = plan(host)
    assert [A, B] == [one.file.name for one in made.verdicts if one.removes]
    before = (machine.base / A).stat().st_ctime_ns

    disk = make(machine)

    assert {A: "backing-file", B: "removed"} == gone_and_why(host, made)
    assert before == (machine.base / A).stat().st_ctime_ns  # it was at no moment away from its name
    assert_kept(host, A)
    assert_opens(disk)


def test_a_disk_made_through_the_door_after_the_plan_keeps_its_base(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()
    base = host.ensure(ref)
    made = plan(host, ahead=2 * DAY)

    host.create_disk("web-1", ref)

    assert "removed" not in gone_and_why(host, made).values()
    assert base.path.exists()


def test_a_directory_that_was_renamed_with_its_disk_after_the_plan_keeps_its_base(machine: Machine, host: Host) -> None:
    put(machine, A, content=bytes(MIB))
    made = plan(host)
    disk = overlay(disk_of(machine, "web-1"), machine.base / A)
    aside = disk.parent.rename(machine.instances / "web-1_resize")

    assert {A: "backing-file"} == gone_and_why(host, made)
    assert "backing-file" == pruned(host)[A]
    assert (aside / "disk").exists()


def test_a_known_directory_that_vanished_and_a_root_that_did_are_not_the_same(machine: Machine, host: Host) -> None:
    put(machine, A)
    disk_of(machine).parent.mkdir()
    made = plan(host)
    disk_of(machine).parent.rmdir()
    assert {A: "removed"} == gone_and_why(host, made)

    put(machine, A)
    made = plan(host)
    machine.instances.rmdir()
    assert {A: "directory-unreadable"} == gone_and_why(host, made)
    assert_kept(host, A)


@pytest.mark.component("root")
def test_a_directory_that_cannot_be_read_any_more_keeps_what_it_may_stand_on(machine: Machine, host: Host) -> None:
    put(machine, A)
    put(machine, f"{B}.part")
    made = plan(host)
    disk_of(machine).parent.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk_of(machine).parent], check=True)
    disk_of(machine).symlink_to("/proc/self/mem/none")
    try:
        assert {A: "disk-unreadable", f"{B}.part": "removed"} == gone_and_why(host, made)
    finally:
        subprocess.run(["umount", disk_of(machine).parent], check=True)
    assert_kept(host, A)


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_lease_or_a_pin_after_the_plan_keeps_its_image(machine: Machine, host: Host, seconds: float | None) -> None:
    put(machine, A)
    made = plan(host)

    if seconds is None:
        host.pin(A, holder="me")
    else:
        host.lease(A, holder="me", seconds=seconds)

    assert {A: "pin" if seconds is None else "lease"} == gone_and_why(host, made)
    assert_kept(host, A)


def test_a_lease_that_nobody_can_read_keeps_every_image(machine: Machine, host: Host) -> None:
    put(machine, A)
    put(machine, f"{B}.part")
    made = plan(host)
    (store_of(host).paths.leases / "lease-1.json").write_bytes(b"{")

    assert {A: "lease-unreadable", f"{B}.part": "removed"} == gone_and_why(host, made)
    assert "lease-unreadable" == pruned(host)[A]


def test_a_disk_recorded_elsewhere_after_the_plan_keeps_its_base(machine: Machine, host: Host) -> None:
    put(machine, A, content=bytes(MIB))
    made = plan(host)
    elsewhere = overlay(machine.root / "elsewhere", machine.base / A)

    roots.add(store_of(host), A, elsewhere)

    assert {A: "recorded-base"} == gone_and_why(host, made)
    assert_kept(host, A)


def test_another_host_that_said_what_it_uses_after_the_plan_keeps_it(machine: Machine) -> None:
    machine.config.write_text(
        machine.config.read_text().replace("[instances]", 'host = "one"\n[instances]\nhosts = ["one", "two"]')
    )
    host = machine.host()
    store_of(host).prepare()
    two = Host.open(replace(host.config, host="two"))
    host.apply(plan(host))
    two.apply(plan(two))
    put(machine, A)
    put(machine, B)
    made = plan(host)
    overlay(machine.root / "far away" / "disk", machine.base / A)
    said = json.loads(store_of(host).paths.host("two").read_bytes())
    write_durably(store_of(host).paths.host("two"), json.dumps(said | {"names": [A]}).encode(), mode=0o644)

    assert {A: "host", B: "removed"} == gone_and_why(host, made)
    assert_kept(host, A)


# ----------------------------------------------------------------------------------------------------------------------- opened


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_file_that_is_open_when_it_is_judged_stays(machine: Machine, host: Host, flags: int) -> None:
    with opened(put(machine, A), flags):
        made = plan(host)
        assert ["open"] == [reason.code for one in made.verdicts for reason in one.reasons]
        assert {A: "open"} == gone_and_why(host, made)
    assert_kept(host, A)
    assert "young" == pruned(host)[A]  # its grace starts anew


def test_a_file_that_is_opened_after_it_was_judged_stays(machine: Machine, host: Host) -> None:
    path = put(machine, A)
    made = plan(host)

    before = path.stat().st_ctime_ns

    with opened(path):
        assert {A: "open"} == gone_and_why(host, made)

    assert before == path.stat().st_ctime_ns
    assert_kept(host, A)


# ----------------------------------------------------------------------------------------------------------------------- locked


def hold_posix_lock(path: str) -> None:
    """As Nova does, by oslo.concurrency and fasteners."""
    Path(path).parent.mkdir(exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        tell("held")
        told()


@pytest.fixture
def beside_nova(tmp_path: Path) -> Machine:
    (tmp_path / "instances").mkdir()
    return Machine(tmp_path, tmp_path / "instances/_base", tmp_path / "instances", tmp_path / "underlay.toml")


def as_nova_has_it(machine: Machine) -> Host:
    machine.base.mkdir(exist_ok=True)
    machine.config.write_text(
        f'host = "one"\n[instances]\npath = "{machine.instances}"\n[caches.base]\nkind = "base"\npath = "{machine.base}"\n'
    )
    host = machine.host()
    assert machine.instances / "locks" == store_of(host).nova_locks
    store_of(host).prepare()
    return host


def test_a_name_whose_lock_another_underlay_holds_stays_and_the_others_go(machine: Machine, host: Host) -> None:
    for name in (A, B, f"{A}.part"):
        put(machine, name)
    with locks.shared(store_of(host).paths.locks / A, timeout=1):
        assert {A: "locked", f"{A}.part": "locked", B: "removed"} == pruned(host)
    assert_kept(host, A)
    assert {A: "removed", f"{A}.part": "removed"} == pruned(host)


def test_a_name_whose_lock_nova_holds_stays_and_the_others_go(beside_nova: Machine) -> None:
    host = as_nova_has_it(beside_nova)
    for name in (A, B, f"{A}.part"):
        put(beside_nova, name)
    with start(hold_posix_lock, beside_nova.instances / "locks" / f"nova-{A}") as nova:
        assert "held" == nova.hear()
        assert {A: "locked", f"{A}.part": "locked", B: "removed"} == pruned(host)
        nova.say()
    assert_kept(host, A)
    assert {A: "removed", f"{A}.part": "removed"} == pruned(host)


def test_novas_lock_files_stay(beside_nova: Machine) -> None:
    host = as_nova_has_it(beside_nova)
    put(beside_nova, A)

    pruned(host)

    assert f"nova-{A}" in os.listdir(beside_nova.instances / "locks")


class Rival:
    """Takes locks by means of its own, as oslo.concurrency does in Nova's process, and may do something when it does."""

    def __init__(self, act: Callable[[str], None] = lambda name: None, *, busy: Sequence[str] = ()) -> None:
        self.act, self.busy, self.held = act, busy, []  # type: tuple[Callable[[str], None], Sequence[str], list[str]]

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        if name in self.busy:
            yield False
            return
        self.held.append(name)
        self.act(name)
        try:
            yield True
        finally:
            self.held.remove(name)


def with_rival(host: Host, rival: Rival, observer: Observer | None = None) -> Host:
    store = replace(store_of(host), rival_lock=rival.take)
    config: Config = replace(host.config, caches={"base": store})
    return Host.open(config, observer=observer)


def test_a_rivals_lock_is_held_throughout_and_a_busy_rival_keeps_his_file(machine: Machine, host: Host) -> None:
    put(machine, A)
    put(machine, B)
    rival = Rival(busy=[A])
    held: list[Sequence[str]] = []

    class Watching(Recorder):
        def event(self, event: object) -> None:
            held.append(list(rival.held))

    assert {A: "locked", B: "removed"} == pruned(with_rival(host, rival, Watching()))
    assert [B] in held
    assert [] == rival.held
    assert_kept(host, A)


def test_a_lock_file_that_is_replaced_under_us_keeps_its_file_and_the_others_go(machine: Machine, host: Host) -> None:
    """The rival is asked once our own lock is held: a good moment to take our lock file away."""
    put(machine, A)
    put(machine, B)

    def replace_lock(name: str) -> None:
        if name == A:
            path = store_of(host).paths.locks / A
            path.unlink()
            path.touch()

    assert {A: "locked", B: "removed"} == pruned(with_rival(host, Rival(replace_lock)))
    assert_kept(host, A)


@pytest.mark.component("strace")
def test_novas_lock_file_that_is_replaced_under_us_keeps_its_file(beside_nova: Machine) -> None:
    host = as_nova_has_it(beside_nova)
    put(beside_nova, A)
    lock = beside_nova.instances / "locks" / f"nova-{A}"
    lock.parent.mkdir()
    lock.touch()
    # Stopped when a new directory is read: the second look, all locks held. Nova removes lock files.
    disk = disk_of(beside_nova, "odd")
    disk.parent.mkdir()
    disk.write_bytes(b"raw")
    stopped = ["strace", "-qq", "-o", os.devnull, "-P", str(disk.parent), "-e", "inject=getdents64:signal=SIGSTOP:when=1"]
    with start(plan_then_apply, beside_nova.config, wrapper=stopped) as child:
        assert "planned" == child.hear()
        child.say()
        pid = child.stopped()
        lock.unlink()
        os.kill(pid, signal.SIGCONT)
        assert {A: "locked"} == json.loads(child.hear())
    assert_kept(host, A)


def plan_then_apply(config: str) -> None:
    """Plan without a directory that is there again when the plan is applied."""
    host = Host.open(Path(config))
    odd = host.config.instances / "odd"
    aside = odd.rename(odd.parent.parent / "aside")
    made = plan(host)
    aside.rename(odd)
    tell("planned")
    told()
    tell(json.dumps(outcome(host.apply(made))))


# ----------------------------------------------------------------------------------------------------------- while in the trash


def prune_in_a_child(config: str) -> None:
    tell(json.dumps(pruned(Host.open(Path(config)))))


@contextmanager
def stopped_with_a_file_in_the_trash(machine: Machine) -> Iterator[tuple[Child, int]]:
    """A prune that has stopped when its first file had just left the cache for the trash."""
    wrapper = ["strace", "-qq", "-o", os.devnull, "-e", "trace=renameat2", "-e", "inject=renameat2:signal=SIGSTOP:when=1"]
    with start(prune_in_a_child, machine.config, wrapper=wrapper) as child:
        pid = child.stopped()
        assert not (machine.base / A).exists()
        assert machine.host().config.caches["base"].paths.trashed(A).exists()
        yield child, pid


def go_on(child: Child, pid: int) -> dict[str, str]:
    os.kill(pid, signal.SIGCONT)
    found: dict[str, str] = json.loads(child.hear())
    return found


def trashed(host: Host) -> Path:
    return store_of(host).paths.trashed(A)


def lease_by_hand(machine: Machine, host: Host) -> object:
    """By somebody who has not taken the lock, or had let go of it when it was taken from him."""
    record = {"layout": 1, "holder": "x", "names": [A], "refs": [], "made_at": "2026-05-06T07:08:09Z", "expires": None}
    return (store_of(host).paths.leases / "pin-1.json").write_text(json.dumps(record))


IN_THE_TRASH: dict[str, tuple[str, Callable[[Machine, Host], object]]] = {
    "overlay": ("backing-file", lambda machine, host: into_new_directory(machine)),
    "overlay in a renamed directory": ("backing-file", lambda machine, host: into_renamed_directory(machine)),
    "overlay by a relative name": ("backing-file", lambda machine, host: by_a_relative_name(machine)),
    "pin": ("pin", lease_by_hand),
    "disk elsewhere": ("recorded-base", lambda machine, host: roots.add(store_of(host), A, machine.root / "disk")),
    "link": ("changed", lambda machine, host: os.link(trashed(host), machine.root / "delivered")),
    "use": ("changed", lambda machine, host: images.mark_used(store_of(host), A)),
    "touched": ("changed", lambda machine, host: os.utime(trashed(host))),
}


@pytest.mark.component("strace")
@pytest.mark.parametrize("what", IN_THE_TRASH)
def test_what_comes_to_be_needed_while_it_is_in_the_trash_is_put_back(machine: Machine, host: Host, what: str) -> None:
    path = put(machine, A, content=b"content")
    inode = path.stat().st_ino
    (machine.instances / "known").mkdir()
    code, happen = IN_THE_TRASH[what]

    with stopped_with_a_file_in_the_trash(machine) as (child, pid):
        happen(machine, host)
        assert {A: code} == go_on(child, pid)

    assert_kept(host, A)
    assert (inode, b"content") == (path.stat().st_ino, path.read_bytes())


@pytest.mark.component("strace")
def test_what_was_opened_before_it_went_into_the_trash_is_put_back(machine: Machine, host: Host) -> None:
    path = put(machine, A)

    with stopped_with_a_file_in_the_trash(machine) as (child, pid), opened(trashed(host)):
        assert {A: "open"} == go_on(child, pid)

    assert_kept(host, A)
    assert b"what an image has in it" == path.read_bytes()


@pytest.mark.component("strace")
def test_a_needed_file_whose_name_was_taken_meanwhile_stays_in_the_trash_and_is_told(machine: Machine, host: Host) -> None:
    put(machine, A, content=b"old")

    with stopped_with_a_file_in_the_trash(machine) as (child, pid), opened(trashed(host)) as fd:
        put(machine, A, content=b"new", age=0)
        assert {A: "open"} == go_on(child, pid)
        assert b"old" == os.pread(fd, 9, 0) == trashed(host).read_bytes()
        assert b"new" == (machine.base / A).read_bytes()
        pruned(host)
        assert trashed(host).exists()

    pruned(host)
    assert_kept(host, A)
    assert b"new" == (machine.base / A).read_bytes()


@pytest.mark.component("strace")
def test_an_unneeded_file_whose_name_was_taken_meanwhile_goes_and_the_new_one_stays(machine: Machine, host: Host) -> None:
    put(machine, A, content=b"old")

    with stopped_with_a_file_in_the_trash(machine) as (child, pid):
        put(machine, A, content=b"new", age=2 * DAY)
        go_on(child, pid)

    assert b"new" == (machine.base / A).read_bytes()
    assert [] == os.listdir(store_of(host).paths.trash)


@pytest.mark.component("strace")
@pytest.mark.component("qemu-img")
def test_a_whole_chain_in_the_cache_is_put_back_for_an_overlay_that_came_meanwhile(machine: Machine, host: Host) -> None:
    """The upper image cannot be read by its name while it is in the trash; what it stands on is needed all the same."""
    put(machine, A, content=bytes(MIB))
    upper = f"{B}.qcow2"
    aged(overlay(machine.base / upper, machine.base / A), 2 * DAY)
    wrapper = ["strace", "-qq", "-o", os.devnull, "-e", "trace=renameat2", "-e", "inject=renameat2:signal=SIGSTOP:when=2"]

    with start(prune_in_a_child, machine.config, wrapper=wrapper) as child:
        pid = child.stopped()
        disk = overlay(disk_of(machine), machine.base / upper, backing_format="qcow2")
        found = go_on(child, pid)

    assert "removed" not in found.values(), found
    assert_opens(disk)


@pytest.mark.component("strace")
def test_a_second_prune_leaves_alone_what_the_first_has_in_the_trash(machine: Machine, host: Host) -> None:
    put(machine, A)
    put(machine, B)

    with stopped_with_a_file_in_the_trash(machine) as (child, pid):
        assert {B: "locked"} == pruned(host)
        assert trashed(host).exists()
        assert {A: "removed", B: "removed"} == go_on(child, pid)

    assert {} == pruned(host)


def wait_until_gone(pid: int) -> None:
    """What strace traced ends a moment after strace has been killed."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} goes on")


@pytest.mark.component("strace")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_was_in_the_trash_when_a_prune_was_ended_is_put_back(machine: Machine, host: Host, number: signal.Signals) -> None:
    path = put(machine, A)
    with stopped_with_a_file_in_the_trash(machine) as (child, pid):
        disk = overlay(disk_of(machine), path)
        os.kill(pid, number)
        if number == signal.SIGINT:
            os.kill(pid, signal.SIGCONT)
            child.process.wait(30)
            assert_kept(host, A)
        else:
            child.kill()
            wait_until_gone(pid)

    assert {} == {name: code for name, code in pruned(host).items() if code == "removed"}
    assert_kept(host, A)
    assert "backing-file" == pruned(host)[A]
    assert disk.exists()


# --------------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.component("root")
def test_a_file_that_cannot_be_removed_is_told_and_the_others_go(machine: Machine, host: Host) -> None:
    for name in (A, B, C):
        put(machine, name)
    subprocess.run(["chattr", "+i", machine.base / B], check=True)
    try:
        report = host.apply(plan(host))
    finally:
        subprocess.run(["chattr", "-i", machine.base / B], check=True)

    assert {A: "removed", B: "failed", C: "removed"} == outcome(report)
    assert [machine.base / B] == [problem.path for problem in report.problems if problem.code == "cache-not-writable"]
    assert_kept(host, B)
    assert {B: "removed"} == pruned(host)


@pytest.mark.component("tmpfs")
def test_on_a_read_only_file_system_nothing_goes_and_all_is_told(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    target = mounted("tmpfs")
    machine = Machine.make(tmp_path, base=f"{target.name}/base")
    host = machine.host()
    store_of(host).prepare()
    put(machine, A)
    overlay(disk_of(machine), put(machine, B, content=bytes(MIB)))
    made = plan(host)
    subprocess.run(["mount", "-o", "remount,ro", target], check=True)
    try:
        report = host.apply(made)
        again = plan(host)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", target], check=True)

    assert {A: "failed", B: "backing-file"} == outcome(report)
    assert "cache-not-writable" in {problem.code for problem in report.problems}
    assert [A] == [one.file.name for one in again.verdicts if one.removes]
    assert {A: "removed", B: "backing-file"} == pruned(host)


def test_a_cache_that_vanished_after_the_plan_is_a_problem_and_the_others_are_pruned(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    machine = Machine.make(tmp_path, extra=f'[caches.other]\nkind = "base"\npath = "{other}"\n')
    host = machine.host()
    put(machine, A)
    aged(put(machine, B).rename(other / B), 2 * DAY)
    made = plan(host)
    machine.base.rename(tmp_path / "away")

    report = host.apply(made)

    assert {A: "failed", B: "removed"} == outcome(report)
    assert ["cache-missing"] == [problem.code for problem in report.problems if problem.path == machine.base]
    assert (tmp_path / "away" / A).exists()


def test_a_use_that_cannot_be_recorded_keeps_everything(machine: Machine, host: Host) -> None:
    put(machine, A)
    overlay(disk_of(machine), put(machine, B, content=bytes(MIB)))
    store_of(host).paths.used.rmdir()

    report = host.apply(plan(host))

    assert {A: "failed", B: "backing-file"} == outcome(report)
    assert_kept(host, A)


# ---------------------------------------------------------------------------------------------------------------- after a crash


def test_what_a_crash_left_in_the_trash_is_back_for_the_next_pass_and_judged_by_it(machine: Machine, host: Host) -> None:
    for name in (A, B):
        put(machine, name)
        eviction.trash(store_of(host), name)
    disk = overlay(disk_of(machine), machine.base / A)

    assert {} == pruned(host)
    assert [A, B] == sorted(set(os.listdir(machine.base)) - {".underlay"})
    assert {A: "backing-file", B: "removed"} == pruned(host)
    assert disk.exists()


# ---------------------------------------------------------------------------------------------------------------------- ingests


def test_a_dead_ingest_goes_at_its_age_and_a_live_one_stays(machine: Machine, host: Host) -> None:
    store = store_of(host)
    download = stage(store, os.urandom(MIB))
    name = f".underlay/tmp/{ref_key(REF.canonical)}"
    assert {name: "young"} == pruned(host)

    made = plan(host, ahead=2 * DAY)
    with locks.exclusive(store.paths.ingest_lock(ref_key(REF.canonical)), timeout=1):
        assert {} == pruned(host, ahead=2 * DAY)
        assert {name: "locked"} == gone_and_why(host, made)
    assert download.exists()

    report: Report = host.apply(plan(host, ahead=2 * DAY))
    assert ({name: "removed"}, MIB) == (outcome(report), report.freed)
    assert [] == os.listdir(store.paths.tmp)


def test_an_ingest_that_was_taken_up_and_left_again_since_it_was_judged_stays(machine: Machine, host: Host) -> None:
    store = store_of(host)
    download = stage(store, b"old")
    made = plan(host, ahead=2 * DAY)
    download.write_bytes(b"taken up again")

    assert ["locked"] == list(gone_and_why(host, made).values())
    assert download.exists()


# ------------------------------------------------------------------------------------------------------------------- refreshing


def last_use(host: Host, name: str) -> int:
    store = store_of(host)
    return max((store.root / name).stat().st_mtime_ns, store.paths.used_marker(name).stat().st_mtime_ns)


@pytest.mark.parametrize("removal", [True, False])
def test_every_file_of_a_chain_is_refreshed_to_the_plans_now(tmp_path: Path, *, removal: bool) -> None:
    machine = Machine.make(tmp_path, options=f"remove_unused_base_images = {str(removal).lower()}")
    host = machine.host()
    middle = f"{B}.qcow2"
    put(machine, A, content=bytes(MIB))
    aged(overlay(machine.base / middle, machine.base / A), 2 * DAY)
    overlay(disk_of(machine, "stranger", "disk.local"), machine.base / middle, backing_format="qcow2")
    put(machine, C)
    made = plan(host)

    found = gone_and_why(host, made)

    assert {A: "backing-file", middle: "backing-file", C: "removed" if removal else "removal-off"} == found
    now = int(made.now.timestamp()) * 10**9 + made.now.microsecond * 1000
    assert [now, now] == [last_use(host, A), last_use(host, middle)]
    assert removal != (machine.base / C).exists()


def test_a_base_keeps_its_whole_grace_after_its_last_disk(machine: Machine, host: Host) -> None:
    put(machine, A, content=bytes(MIB))
    disk = overlay(disk_of(machine), machine.base / A)
    pruned(host)
    disk.unlink()

    assert {A: "young"} == pruned(host, ahead=DAY - 60)
    assert {A: "removed"} == pruned(host, ahead=DAY + 60)


def test_a_refresh_never_takes_a_later_use_back(machine: Machine, host: Host) -> None:
    path = put(machine, A, age=HOUR)
    overlay(disk_of(machine), path)
    before = path.stat().st_mtime_ns

    pruned(host, ahead=-DAY)

    assert before == path.stat().st_mtime_ns


def test_a_last_use_that_a_wrong_clock_has_put_far_ahead_is_set_right(machine: Machine, host: Host) -> None:
    path = put(machine, A, age=-365 * DAY)
    overlay(disk_of(machine), path)

    assert "backing-file" == pruned(host)[A]

    assert path.stat().st_mtime < datetime.now(UTC).timestamp() + 60


def test_a_used_file_that_vanished_meanwhile_is_no_error(machine: Machine, host: Host) -> None:
    overlay(disk_of(machine), put(machine, A, content=bytes(MIB)))
    put(machine, B)
    made = plan(host)
    (machine.base / A).unlink()

    assert {A: "backing-file", B: "removed"} == gone_and_why(host, made)
    assert not store_of(host).paths.used_marker(A).exists()


def test_a_plan_touches_nothing_at_all(machine: Machine, host: Host) -> None:
    overlay(disk_of(machine), put(machine, A, content=bytes(MIB)))
    for name in (B, f"{C}.part", "swap_1", "notes"):
        put(machine, name)
    host.lease(B, holder="me", seconds=1)
    stage(store_of(host), b"dead")
    put(machine, original("trashed"))
    eviction.trash(store_of(host), original("trashed"))
    before = tree(machine.root)

    made = plan(host, ahead=3 * DAY)
    host.explain(A)
    host.plan_evict(B)

    assert before == tree(machine.root)
    assert any(one.removes for one in made.verdicts)
    assert any(one.refresh for one in made.verdicts)


def test_leases_that_ended_are_swept_and_others_stay(machine: Machine, host: Host) -> None:
    put(machine, A)
    host.lease(A, holder="short", seconds=0.05)
    host.lease(A, holder="long", seconds=600)
    host.pin(A, holder="pin")
    time.sleep(0.1)

    assert {A: "lease"} == pruned(host, ahead=90)

    assert ["long", "pin"] == [lease.holder for _, lease in host.leases()]
    assert [] == leases.leases(store_of(host))[1]


# ------------------------------------------------------------------------------------------------------------------------ evict


def test_one_image_is_evicted_whatever_its_age_and_no_other(machine: Machine, host: Host) -> None:
    put(machine, A, age=0)
    put(machine, B)

    report = host.apply(host.plan_evict(A))

    assert {A: "removed"} == outcome(report)
    assert_kept(host, B)


def test_an_eviction_says_nothing_of_what_else_this_host_uses(machine: Machine) -> None:
    machine.config.write_text(machine.config.read_text().replace("[instances]", 'host = "one"\n[instances]\nhosts = ["one"]'))
    host = machine.host()
    overlay(disk_of(machine), put(machine, A, content=bytes(MIB)))
    pruned(host)
    put(machine, B)
    said = store_of(host).paths.host("one").read_bytes()
    assert [A] == json.loads(said)["names"]

    assert {B: "removed"} == outcome(host.apply(host.plan_evict(B)))

    assert said == store_of(host).paths.host("one").read_bytes()


def test_an_image_that_somebody_needs_is_not_evicted(machine: Machine, host: Host) -> None:
    overlay(disk_of(machine), put(machine, A, content=bytes(MIB)))
    put(machine, B)
    host.pin(B, holder="me")
    with opened(put(machine, C)):
        found = [outcome(host.apply(host.plan_evict(name))) for name in (A, B, C)]

    assert [{A: "backing-file"}, {B: "pin"}, {C: "open"}] == found


# ------------------------------------------------------------------------------------------------------------------------ freed


@pytest.mark.component("xfs")
def test_what_is_freed_is_what_was_not_shared(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    target = mounted("xfs")
    machine = Machine.make(tmp_path, base=f"{target.name}/base")
    host = machine.host()
    path = put(machine, A, content=os.urandom(4 * MIB))
    subprocess.run(["cp", "--reflink=always", path, target / "clone"], check=True)
    with path.open("r+b") as file:  # one of the four MiB becomes its own
        file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    aged(path, 2 * DAY)
    store_of(host).prepare()
    os.sync()
    free = os.statvfs(target).f_bfree

    report = host.apply(plan(host))
    os.sync()

    assert {A: "removed"} == outcome(report)
    assert MIB == report.freed
    deadline = time.monotonic() + PATIENCE  # xfs takes a removed file apart a moment later
    while (os.statvfs(target).f_bfree - free) * os.statvfs(target).f_frsize < MIB // 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    gained = (os.statvfs(target).f_bfree - free) * os.statvfs(target).f_frsize
    assert abs(gained - report.freed) <= MIB // 4


# -------------------------------------------------------------------------------------------------------------- several at once


def prune_often(config: str, number: str) -> None:
    host = Host.open(Path(config))
    for count in range(15):
        directory = host.config.instances / f"web-{number}-{count}"
        directory.mkdir()  # so that there is something to note each time
        report = host.apply(plan(host))
        failed = [str(problem) for problem in report.problems if problem.code != "no-inventory"]
        assert [] == failed
        assert "failed" not in outcome(report).values()
    tell("done")


def test_prunes_that_run_at_the_same_time_do_not_get_into_each_others_way(machine: Machine) -> None:
    machine.config.write_text(machine.config.read_text().replace("[instances]", 'host = "one"\n[instances]\nhosts = ["one"]'))
    for number in range(40):
        put(machine, original(str(number)))
    overlay(disk_of(machine), put(machine, A, content=bytes(MIB)))

    with start(prune_often, machine.config, 1) as one, start(prune_often, machine.config, 2) as two:
        assert ["done", "done"] == [one.hear(), two.hear()]

    assert {A, ".underlay"} == set(os.listdir(machine.base))


@pytest.mark.component("qemu-img")
def test_a_disk_that_was_rebased_in_its_place_after_the_plan_keeps_its_new_base(machine: Machine, host: Host) -> None:
    for name in (A, B):
        put(machine, name, content=bytes(MIB))
    disk = overlay(disk_of(machine), machine.base / A)
    made = plan(host)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", machine.base / B, disk], check=True)

    host.apply(made)

    assert_opens(disk)
