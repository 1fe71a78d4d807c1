"""``underlay prune``, ``evict`` and ``explain``: what goes and what stays, told to people and programs."""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from machine import MIB, NOBODY, Ended, Machine, on_terminal, plain, tree
from pruning import DAY, GLANCE, ORIGINAL, OTHER, instance_file, nova_host, old_file, overlay, verdicts

pytestmark = pytest.mark.component("leases")

KEYS = {"plan", "removed", "freed", "shortfall", "problems"}
VERDICT_KEYS = {"cache", "name", "path", "kind", "action", "refresh", "reasons", "allocated"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return nova_host(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------- prune


@pytest.mark.component("qemu-img")
def test_a_dry_run_says_what_would_go_and_changes_nothing(machine: Machine) -> None:
    used, unused = old_file(machine, ORIGINAL), old_file(machine, OTHER)
    overlay(machine, used)
    before = tree(machine.root)

    told, text = machine.call("prune", "--dry-run", "--json"), machine.call("prune", "--dry-run")

    assert before == tree(machine.root)
    assert KEYS == told.json.keys()
    assert [VERDICT_KEYS] * 2 == [one.keys() for one in told.json["plan"]]
    assert {ORIGINAL: ("keep", ["backing-file"]), OTHER: ("remove", ["unused"])} == verdicts(told.json)
    assert ([], 0, 0) == (told.json["removed"], told.json["freed"], told.json["shortfall"])
    assert f"{OTHER[:12]}  original" in text.out
    assert "kept 1 file of 1.0 MiB; would remove 1 file of 1.0 MiB" == text.out.splitlines()[-1]
    assert unused.exists()


@pytest.mark.component("qemu-img")
def test_a_prune_removes_what_nobody_needs_and_says_so(machine: Machine) -> None:
    used, unused = old_file(machine, ORIGINAL), old_file(machine, OTHER)
    overlay(machine, used)

    told = machine.call("prune", "--json").json

    assert [str(unused)] == told["removed"]
    assert (MIB, 0) == (told["freed"], told["shortfall"])
    assert {"remove": True, "keep": False} == {one["action"]: not one["refresh"] for one in told["plan"]}
    assert (True, False) == (used.exists(), unused.exists())
    assert time.time() - used.stat().st_mtime < 60
    assert [] == machine.call("prune", "--json").json["removed"]


def test_what_went_is_told_to_people(machine: Machine) -> None:
    old_file(machine, OTHER, size=3 * MIB)
    old_file(machine, ORIGINAL, age=3600)

    ended = machine.call("prune")

    lines = ended.out.splitlines()
    assert ["REMOVED", "KIND", "ON", "DISK", "WHY"] == lines[0].split()
    assert [OTHER[:12], "original", "3.0", "MiB"] == lines[1].split()[:4]
    assert "nobody needs it: 10 d since its last use" in lines[1]
    assert "kept 1 file of 1.0 MiB; removed 1 file of 3.0 MiB, freed 3.0 MiB" == lines[-1]
    assert "removed" in ended.err


def test_nothing_to_prune_is_said_in_one_line(tmp_path: Path) -> None:
    ended = Machine.make(tmp_path).call("prune")

    assert (0, "kept 0 files; removed 0 files, freed 0 B") == (ended.status, ended.out.splitlines()[-1])


def test_one_cache_can_be_pruned(tmp_path: Path) -> None:
    for name in ("second", "masters"):
        (tmp_path / name).mkdir()
    extra = f'[caches.second]\nkind = "base"\npath = "{tmp_path}/second"\n'
    machine = nova_host(tmp_path, extra=extra + f'[caches.masters]\nkind = "masters"\npath = "{tmp_path}/masters"\n')
    here = old_file(machine, OTHER)
    there = here.rename(tmp_path / "second" / OTHER)
    here = old_file(machine, OTHER)

    assert ["second"] == [one["cache"] for one in machine.call("prune", "--cache", "second", "--json").json["plan"]]
    assert (True, False) == (here.exists(), there.exists())
    refused = machine.call("prune", "--cache", "third", "--json")
    assert (17, "unknown-cache") == (refused.status, refused.error["code"])


@pytest.mark.parametrize("form", ["{epoch}", "{epoch}.5", "{iso}", "{iso}Z", "{iso}+00:00"])
def test_the_time_may_be_given(machine: Machine, form: str) -> None:
    path = old_file(machine, OTHER, age=0)
    at = datetime.fromtimestamp(int(time.time() + 2 * DAY), UTC).replace(tzinfo=None)
    now = form.format(epoch=int(at.replace(tzinfo=UTC).timestamp()), iso=at.isoformat())

    assert "keep" == verdicts(machine.call("prune", "--json").json)[OTHER][0]
    assert [str(path)] == machine.call("prune", "--now", now, "--json").json["removed"]


@pytest.mark.parametrize("now", ["", "yesterday", "-1", "1e9", "nan", "99999999999999", "2026-13-01", "0x10"])
def test_what_is_no_time_is_refused_and_nothing_goes(machine: Machine, now: str) -> None:
    path = old_file(machine, OTHER)

    ended = machine.call("prune", f"--now={now}", "--json")

    assert (2, "usage") == (ended.status, ended.error["code"])
    assert path.exists()


# ------------------------------------------------------------------------------------------------------------------- instances


def test_an_instance_file_says_who_needs_what(machine: Machine) -> None:
    old_file(machine, ORIGINAL)
    old_file(machine, f"{ORIGINAL}_20")
    gone = old_file(machine, OTHER)
    file = instance_file(machine, {"image_ref": GLANCE, "host": "node1"})

    told = machine.call("prune", "--instances", file, "--json").json

    assert [str(gone)] == told["removed"]
    assert ("keep", ["instance-image"]) == verdicts(told)[ORIGINAL]
    assert [] == [problem for problem in told["problems"] if problem["code"] == "no-inventory"]


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '[{"uuid": "a"}]', '[{"uuid": "a", "name": "b", "nmae": 1}]', '[{"uuid": "a", "name": "b"}] x']
)
@pytest.mark.parametrize("command", ["prune", "explain", "evict"])
def test_a_malformed_instance_file_removes_nothing(machine: Machine, command: str, content: str) -> None:
    path = old_file(machine, OTHER)
    file = machine.root / "instances.json"
    file.write_text(content)
    arguments = [] if command == "prune" else [OTHER]

    ended = machine.call(command, *arguments, "--instances", file, "--json")

    assert (85, "invalid-inventory") == (ended.status, ended.error["code"])
    assert str(file) in str(ended.error["message"])
    assert path.exists()


def test_an_instance_file_that_is_not_there_removes_nothing(machine: Machine) -> None:
    path = old_file(machine, OTHER)

    ended = machine.call("prune", "--instances", machine.root / "none.json", "--json")

    assert (84, "inventory-unavailable") == (ended.status, ended.error["code"])
    assert path.exists()


def test_without_an_inventory_every_report_says_so(machine: Machine) -> None:
    for arguments in (["prune"], ["prune", "--dry-run"]):
        assert ["no-inventory"] == [one["code"] for one in machine.call(*arguments, "--json").json["problems"]]
        assert "note no-inventory" in machine.call(*arguments).out


def test_a_configured_inventory_that_does_not_answer_keeps_every_image_and_is_reported(tmp_path: Path) -> None:
    machine = nova_host(tmp_path)
    text = machine.config.read_text().replace("[instances]\n", f'[instances]\ninventory = "file:{tmp_path}/none.json"\n')
    machine.config.write_text(text)
    old_file(machine, ORIGINAL)
    leftover = old_file(machine, f"{OTHER}.part")

    ended = machine.call("prune", "--json")

    assert 0 == ended.status
    assert [str(leftover)] == ended.json["removed"]
    assert ("keep", ["inventory-unavailable"]) == verdicts(ended.json)[ORIGINAL]
    assert ["inventory-unavailable"] == [problem["code"] for problem in ended.json["problems"]]


def test_what_could_not_be_told_is_among_the_problems(machine: Machine) -> None:
    (machine.instances / "compute_nodes").write_text(json.dumps({"node2": time.time()}))
    old_file(machine, ORIGINAL)

    ended = machine.call("prune", "--json")

    assert ("keep", ["hosts-undeclared"]) == verdicts(ended.json)[ORIGINAL]
    (problem,) = (one for one in ended.json["problems"] if one["code"] == "hosts-undeclared")
    assert str(machine.base) == problem["path"]
    assert "problem hosts-undeclared" in machine.call("prune").out


# -------------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.component("root", "tmpfs")
def test_a_removal_that_fails_is_reported_and_has_a_status_of_its_own(mounted: Callable[..., Path], tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    apart = mounted("tmpfs")
    machine.config.write_text(machine.config.read_text().replace(str(machine.base), str(apart)))
    moved = Machine(machine.root, apart, machine.instances, machine.config)
    path = old_file(moved, OTHER)
    machine.call("prune", "--dry-run")
    subprocess.run(["mount", "-o", "remount,ro", apart], check=True)

    ended = machine.call("prune", "--json")

    assert (3, []) == (ended.status, ended.json["removed"])
    assert ("keep", ["failed"]) == verdicts(ended.json)[OTHER]
    assert "cache-not-writable" in [problem["code"] for problem in ended.json["problems"]]
    assert path.exists()


@pytest.mark.component("root")
def test_a_user_who_may_write_nothing_removes_nothing_and_is_told_why(open_directory: Path) -> None:
    machine = nova_host(open_directory)
    path = old_file(machine, OTHER)
    for directory in (machine.root, machine.instances, machine.base):
        directory.chmod(0o755)
    before = tree(machine.root)

    planned, ended = (machine.run("prune", *more, "--json", user=NOBODY) for more in (["--dry-run"], []))
    evicting = machine.run("evict", OTHER, "--json", user=NOBODY)

    assert before == tree(machine.root)
    assert (0, 0, True) == (planned.status, ended.status, path.exists())
    # Who may not ask for a lease and sees no process cannot tell whether it is open.
    assert [("keep", ["open-unknown"])] * 2 == [verdicts(one.json)[OTHER] for one in (planned, ended)]
    assert "cache-not-writable" in [problem["code"] for problem in ended.json["problems"]]
    assert (80, "image-in-use") == (evicting.status, evicting.error["code"])


def test_a_file_that_is_open_is_kept_and_the_answer_has_the_reason(machine: Machine) -> None:
    with old_file(machine, OTHER).open("rb"):
        told = machine.call("prune", "--json").json

    assert ([], ("keep", ["open"])) == (told["removed"], verdicts(told)[OTHER])


def test_names_that_no_table_and_no_json_could_hold_break_neither(machine: Machine) -> None:
    directory = machine.instances / "web\n-1"
    directory.mkdir()
    broken = os.fsencode(directory) + b"/disk.\xff\x1b[31m"
    os.mkfifo(broken)
    with open(os.fsencode(machine.base) + b"/\xff\n", "wb"):
        pass
    old_file(machine, ORIGINAL)

    told, text = machine.run("prune", "--dry-run", "--json"), machine.run("prune", "--dry-run")

    assert (0, 0) == (told.status, text.status)
    assert "\x1b" not in text.out + text.err + json.dumps(told.json, ensure_ascii=False)
    assert [ORIGINAL] == list(verdicts(told.json))


def test_the_tables_fit_a_terminal(machine: Machine) -> None:
    old_file(machine, OTHER)
    old_file(machine, ORIGINAL, age=0)
    for arguments in (["prune", "--dry-run"], ["explain", ORIGINAL]):
        status, sent = on_terminal(machine.argv(*arguments))
        assert 0 == status
        lines = [line for line in plain(sent).splitlines() if not line.startswith(("note", "kept", "problem"))]
        assert max(map(len, lines)) <= 80


# ----------------------------------------------------------------------------------------------------------------------- evict


def evicted(machine: Machine, *arguments: str | Path) -> Ended:
    return machine.call("evict", *arguments, "--json")


def test_one_image_goes_whatever_its_age(machine: Machine) -> None:
    path, other = old_file(machine, ORIGINAL, age=3600), old_file(machine, OTHER)

    ended = evicted(machine, ORIGINAL, "--dry-run")
    assert (0, True, ("remove", ["asked"])) == (ended.status, path.exists(), verdicts(ended.json)[ORIGINAL])
    ended = evicted(machine, ORIGINAL)

    assert (0, [str(path)], False) == (ended.status, ended.json["removed"], path.exists())
    assert other.exists()


@pytest.mark.parametrize("text", ["{name}", "{short}", "{path}", GLANCE, f"glance:{GLANCE}"])
def test_an_image_is_evicted_by_all_that_means_it(machine: Machine, text: str) -> None:
    path = old_file(machine, ORIGINAL, age=3600)

    ended = evicted(machine, text.format(name=ORIGINAL, short=ORIGINAL[:12], path=path))

    assert (0, [str(path)]) == (ended.status, ended.json["removed"])


def test_a_whole_name_means_no_other_file(machine: Machine) -> None:
    others = [old_file(machine, f"{ORIGINAL}{suffix}") for suffix in ("_20", ".raw", ".part", "_sm")]
    old_file(machine, ORIGINAL)

    evicted(machine, ORIGINAL)

    assert [True] * 4 == [path.exists() for path in others]


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_an_image_that_somebody_needs_is_refused_with_the_reasons(machine: Machine, dry_run: list[str]) -> None:
    path = old_file(machine, ORIGINAL)
    disk = overlay(machine, path)
    machine.call("pin", ORIGINAL, "--holder", "golden images")

    ended = evicted(machine, ORIGINAL, *dry_run)

    assert (80, "image-in-use") == (ended.status, ended.error["code"])
    for told in (str(disk), "golden images", str(path)):
        assert told in str(ended.error["message"])
    assert path.exists()


@pytest.mark.component("qemu-img")
def test_of_several_versions_that_a_ref_means_none_goes_when_one_is_needed(machine: Machine) -> None:
    ref, versions = two_versions(machine)
    disk = overlay(machine, versions[0])

    assert (80, [True, True]) == (evicted(machine, ref).status, [path.exists() for path in versions])
    disk.unlink()
    assert (0, [False, False]) == (evicted(machine, ref).status, [path.exists() for path in versions])


@pytest.mark.parametrize("text", [ORIGINAL[:12], "ephemeral"])
def test_a_beginning_that_means_several_files_evicts_none(machine: Machine, text: str) -> None:
    names = [ORIGINAL, f"{ORIGINAL}_20", "ephemeral_1_abcdefg", "ephemeral_2_abcdefg"]
    paths = [old_file(machine, name) for name in names]

    ended = evicted(machine, text)

    assert (40, "not-cached") == (ended.status, ended.error["code"])
    assert "means 2 files" in str(ended.error["message"])
    assert all(path.exists() for path in paths)


def two_versions(machine: Machine) -> tuple[str, list[Path]]:
    """A ref that has meant two images, both of which are here."""
    ref = machine.raw_image()
    first = machine.host().ensure(ref)
    machine.raw_image(message="second")
    later = time.time() + 10
    os.utime(machine.root / "image.raw", (later, later))
    return ref, [first.path, machine.host().ensure(ref).path]


def test_what_was_used_just_now_is_still_evicted_when_nobody_needs_it(machine: Machine) -> None:
    path = old_file(machine, ORIGINAL, age=0)

    assert (0, False) == (evicted(machine, ORIGINAL).status, path.exists())


def test_a_leftover_is_evicted_by_its_name(machine: Machine) -> None:
    path = old_file(machine, f"{ORIGINAL}.part", age=60)

    assert (0, False) == (evicted(machine, path.name).status, path.exists())


@pytest.mark.parametrize("text", ["nothing-of-the-kind", OTHER, "swap_1", "/nowhere/" + OTHER, GLANCE, "a\0b", "a/\udcff"])
def test_what_is_not_there_cannot_be_evicted_or_explained(machine: Machine, text: str) -> None:
    for command in ("evict", "explain"):
        ended = machine.call(command, text, "--json")
        assert (40, "not-cached") == (ended.status, ended.error["code"])


def test_a_name_outside_the_grammar_is_never_touched(machine: Machine) -> None:
    notes = old_file(machine, "notes.txt")

    for command, text in itertools.product(("evict", "explain"), (str(notes), notes.name)):
        ended = machine.call(command, text, "--json")
        assert (40, "not-cached") == (ended.status, ended.error["code"])
        assert "outside the grammar" in str(ended.error["hint"])
    machine.call("prune")
    assert notes.exists()


def test_a_master_is_explained_by_its_ref_and_evicted_unless_it_was_delivered(tmp_path: Path) -> None:
    (tmp_path / "masters").mkdir()
    machine = nova_host(tmp_path, extra=f'[caches.masters]\nkind = "masters"\npath = "{tmp_path}/masters"\n')
    master = machine.host().ensure(machine.raw_image(), cache="masters")

    assert master.ref is not None
    (told,) = machine.call("explain", master.ref, "--json").json["explanations"]
    assert (master.name, ["no-ttl"]) == (told["name"], [reason["code"] for reason in told["reasons"]])
    (tmp_path / "delivered").hardlink_to(master.path)
    refused = machine.call("evict", master.name, "--json")
    assert (80, "image-in-use") == (refused.status, refused.error["code"])
    (tmp_path / "delivered").unlink()
    assert [str(master.path)] == machine.call("evict", master.name, "--json").json["removed"]


def test_evicting_one_image_leaves_what_this_host_has_said_it_needs(tmp_path: Path) -> None:
    machine = nova_host(tmp_path)
    machine.config.write_text(machine.config.read_text().replace("[instances]\n", '[instances]\nhosts = ["node1", "node2"]\n'))
    said = machine.base / ".underlay" / "hosts" / "node2.json"
    needed, free = old_file(machine, ORIGINAL), old_file(machine, OTHER)
    overlay(machine, needed)
    machine.call("prune")
    mine = machine.base / ".underlay" / "hosts" / "node1.json"
    said.write_text(mine.read_text().replace('"node1"', '"node2"').replace(ORIGINAL, f"{ORIGINAL}_20"))
    before = mine.read_text()
    assert ORIGINAL in before

    assert (0, False) == (evicted(machine, OTHER).status, free.exists())

    assert before == mine.read_text()


# --------------------------------------------------------------------------------------------------------------------- explain


@pytest.mark.component("qemu-img")
def test_an_explanation_has_every_reason_and_the_last_use(machine: Machine) -> None:
    path = old_file(machine, ORIGINAL)
    disk = overlay(machine, path)
    machine.call("pin", ORIGINAL, "--holder", "me")
    before = tree(machine.root)

    (told,) = machine.call("explain", ORIGINAL, "--json").json["explanations"]
    text = machine.call("explain", ORIGINAL).out

    assert before == tree(machine.root)
    assert VERDICT_KEYS | {"last_used", "goes_at"} == told.keys()
    assert ["backing-file", "pin"] == [reason["code"] for reason in told["reasons"]]
    assert abs(datetime.fromisoformat(told["last_used"]).timestamp() - path.stat().st_mtime) < 1
    assert told["goes_at"] is None
    for part in (str(disk), "pinned by me", "not while this is so"):
        assert part in text


def test_an_explanation_says_when_an_unused_image_goes(machine: Machine) -> None:
    path = old_file(machine, ORIGINAL, age=3600)

    (told,) = machine.call("explain", path, "--json").json["explanations"]
    (later,) = machine.call("explain", path, "--now", str(int(time.time() + 2 * DAY)), "--json").json["explanations"]

    goes_at = datetime.fromisoformat(told["goes_at"]).timestamp()
    assert abs(goes_at - (path.stat().st_mtime + DAY)) < 2
    assert ("keep", "remove") == (told["action"], later["action"])
    assert "23 h" in told["reasons"][0]["detail"] or "22 h" in told["reasons"][0]["detail"]


def test_a_ref_means_all_its_versions(machine: Machine) -> None:
    ref, versions = two_versions(machine)

    told = machine.call("explain", ref, "--json").json["explanations"]

    assert sorted(map(str, versions)) == sorted(one["path"] for one in told)
    assert 2 == len(told)
