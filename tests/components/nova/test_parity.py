"""Each behaviour of Nova's own pass, beside ours: by our core, and by the class that takes the place of Nova's within Nova.

docs/reference/nova-parity.md has a row for each of them, with the name of its test.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nova_environment import Nova, running
from nova_sides import Side, broken_disks, by_nova, by_underlay, config_of, records
from nova_trees import EXT4, IMAGES, STATES, VFAT, Disk, Tree, build, cache_names, fingerprint, write_overlay

pytestmark = [pytest.mark.component("nova"), pytest.mark.component("qemu-img")]
USED, OTHER, THIRD = IMAGES[:3]
BASE, UNUSED, BARE = fingerprint(USED), fingerprint(OTHER), fingerprint(THIRD)
DAY, HOUR = 86400.0, 3600.0
OLD = 2 * DAY
UUID, NAME = "00000001-0000-4000-8000-000000000000", "instance-00000001"


@pytest.fixture(scope="module")
def nova() -> Iterator[Nova]:
    with running() as one:
        yield one


def instance(number: int = 1, **fields: Any) -> dict[str, Any]:
    """An instance on this host with one used image."""
    row = {"uuid": UUID.replace("1", str(number), 1), "name": f"instance-{number:08x}", "host": "here", "image_ref": USED}
    return row | fields


@dataclass(frozen=True, slots=True)
class Sides:
    """The same tree after Nova's pass, after ours, and after ours within Nova."""

    nova: Side
    ours: Side
    within: Side


def all_sides(nova: Nova, tree: Tree, tmp_path: Path, **how: Any) -> Sides:
    within = by_nova(nova, tree, tmp_path / "within", manager="underlay", **how)
    assert within.error is None, within.answer
    sides = Sides(by_nova(nova, tree, tmp_path / "nova", **how), by_underlay(tree, tmp_path / "ours"), within)
    assert sides.ours.removed == sides.within.removed
    for side in (sides.ours, sides.within):
        assert [] == broken_disks(tree, side.root)
    return sides


def state(side: Side, name: str) -> Any:
    assert side.answer is not None
    return side.answer["state"][name]


def base_names(side: Side, name: str) -> list[str]:
    """A list of paths of the manager, as names."""
    return sorted(os.path.basename(path) for path in state(side, name))


def lines(side: Side, level: str) -> list[str]:
    """What was logged by Nova's logger."""
    assert side.answer is not None
    return [text for found, logger, text in side.answer["log"] if found == level and logger == "nova.virt.libvirt.imagecache"]


def test_the_module_of_the_guide_puts_our_parts_in_the_place_of_nova_s(nova: Nova, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs/guides/nova-drop-in.md").read_text(encoding="utf-8")
    code = guide.split("```python\n")[1].split("```")[0]
    answer = nova.ask(do="recipe", code=code, uuid=UUID, instances_path=os.fspath(tmp_path))
    ours = "underlay.openstack.nova"
    assert [f"{ours}.image_cache.ImageCacheManager", f"{ours}.backend.Backend", f"{ours}.image.Image"] == answer["made"]
    assert [f"{ours}.fetches"] * 2 == answer["functions"]
    assert (True, True) == (answer["is_overlay"], answer["is_driver"])


def test_our_pass_works_in_nova_s_eventlet_mode_too(tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={BASE: OLD, UNUSED: OLD, BARE: OLD}, directories={NAME: {"disk": Disk(BARE)}})
    root = build(tree, tmp_path / "tree")
    with running(eventlet=True) as nova:
        answer = nova.update(root, tree.instances, manager="underlay", through="compute")
    assert (True, None) == (answer["eventlet"], answer["error"])
    assert {BASE, BARE} == cache_names(root)


# ------------------------------------------------------------------------------------------------- C: Nova's way to the pass


def test_a_driver_that_has_no_image_cache_is_left_alone(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(files={UNUSED: OLD})
    for manager in ("nova", "underlay"):
        side = by_nova(nova, tree, tmp_path / manager, manager=manager, through="compute-without-cache")
        assert (None, frozenset()) == (side.error, side.removed)


def test_the_pass_of_the_compute_service_registers_the_host_and_asks_for_soft_deleted_instances(
    nova: Nova, tmp_path: Path
) -> None:
    tree = Tree(instances=[instance(vm_state="soft-delete")], files={BASE: OLD, UNUSED: OLD})
    for manager in ("nova", "underlay"):
        before = time.time()
        side = by_nova(nova, tree, tmp_path / manager, manager=manager, through="compute")
        assert (None, {UNUSED}) == (side.error, side.removed)
        assert side.answer is not None
        assert [{"deleted": False, "soft_deleted": True, "host": ["here"]}] == side.answer["through"]
        registry = json.loads((side.root / "compute_nodes").read_text())
        assert ["here"] == list(registry)
        assert before <= registry["here"] <= time.time()


def test_the_driver_leads_to_our_pass(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={BASE: OLD, UNUSED: OLD})
    sides = all_sides(nova, tree, tmp_path, through="manage_image_cache")
    assert {UNUSED} == sides.nova.removed == sides.within.removed


def test_without_a_cache_directory_the_last_lists_stay(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={BASE: OLD})
    for manager in ("nova", "underlay"):
        side = by_nova(nova, tree, tmp_path / manager, manager=manager, keep=f"missing-{manager}")
        assert [BASE] == base_names(side, "active_base_files")
        (side.root / "_base").rename(side.root / "elsewhere")
        again = nova.update(side.root, [], manager=manager, keep=f"missing-{manager}")
        assert (None, state(side, "active_base_files")) == (again["error"], again["state"]["active_base_files"])
        assert ["DEBUG", "nova.virt.libvirt.imagecache"] in [line[:2] for line in again["log"]]


# --------------------------------------------------------------------------------------------- C: what is listed, and as what


def test_files_are_classed_by_their_names_as_nova_does(nova: Nova, tmp_path: Path) -> None:
    names = [BASE, f"{BASE}_sm", f"{BASE}_20", f"{UNUSED}_10737418240", "swap_512", "swap_abc", f"ephemeral_1_{VFAT}"]
    names += ["ephemeral_x_0706d66", "00000001", f"{UNUSED}.part"]
    tree = Tree(instances=[instance()], files=dict.fromkeys(names, 0.0))
    sides = all_sides(nova, tree, tmp_path)
    for name in ("originals", "unexplained_images", "active_base_files"):
        assert base_names(sides.nova, name) == base_names(sides.within, name)
    for name in ("back_swap_images", "back_ephemeral_images"):
        assert state(sides.nova, name) == state(sides.within, name)
    assert [BASE] == base_names(sides.within, "originals")


def test_directories_links_and_foreign_names_are_never_touched(nova: Nova, tmp_path: Path) -> None:
    foreign = {"z" * 40: OLD, BASE.upper(): OLD, f"{UNUSED}_resized": OLD, f"{UNUSED}_20x": OLD}
    tree = Tree(files={UNUSED: OLD, **foreign})
    for manager in ("nova", "underlay"):
        root = build(tree, tmp_path / manager)
        (root / "_base" / BARE).mkdir()
        (root / "_base" / f"{BARE}_20").symlink_to("nowhere")
        (root / "_base" / f"{BARE}_40").symlink_to(tmp_path / "outside")
        (tmp_path / "outside").touch()
        for path in (tmp_path / "outside", root / "_base" / BARE):
            os.utime(path, (0, 0))
        answer = nova.update(root, [], manager=manager)
        assert answer["error"] is None
        left = cache_names(root) - {BARE, f"{BARE}_20"}
        # Nova takes foreign names for images that nobody knows, and a link for the file that it leads to.
        assert (set() if manager == "nova" else {*foreign, f"{BARE}_40"}) == left
        assert (tmp_path / "outside").exists()


def test_the_devices_of_all_instances_are_asked_for_once(nova: Nova, tmp_path: Path) -> None:
    instances = [instance(1), instance(2), instance(3)]
    sides = all_sides(nova, Tree(instances=instances, files={BASE: OLD}), tmp_path)
    for side in (sides.nova, sides.within):
        assert side.answer is not None
        assert [[row["uuid"] for row in instances]] == side.answer["asked"]


def test_directories_belong_to_an_instance_by_the_names_that_nova_gives_them(nova: Nova, tmp_path: Path) -> None:
    instances = [
        instance(number, vm_state=vm_state, task_state=task_state) for number, (vm_state, task_state) in enumerate(STATES, 1)
    ]
    sides = all_sides(nova, Tree(instances=instances, files={BASE: OLD}), tmp_path)
    names = state(sides.within, "instance_names")
    assert state(sides.nova, "instance_names") == names
    assert {f"instance-{number:08x}_resize" for number in (2, 3, 4, 5, 7, 8)} == {
        name for name in names if name.startswith("instance") and name.endswith("_resize")
    }


def test_used_images_are_counted_here_and_elsewhere(nova: Nova, tmp_path: Path) -> None:
    instances = [instance(1, kernel_id=OTHER), instance(2, host="there", ramdisk_id=OTHER), instance(3, image_ref="")]
    sides = all_sides(nova, Tree(instances=instances, files={BASE: OLD, UNUSED: OLD}), tmp_path)
    used = state(sides.within, "used_images")
    assert state(sides.nova, "used_images") == used
    assert [1, 1, ["instance-00000001", "instance-00000002"]] == used[USED]
    assert frozenset() == sides.nova.removed == sides.ours.removed


# ------------------------------------------------------------------------------------------------------------ C: what is used


def test_every_swap_and_every_ephemeral_of_an_instance_is_used(nova: Nova, tmp_path: Path) -> None:
    row = instance(swap_mib=[512, 1024], ephemerals=[{"size_gib": 1}, {"size_gib": 2}])
    files = dict.fromkeys(("swap_512", "swap_1024", f"ephemeral_1_{VFAT}", f"ephemeral_2_{VFAT}", "swap_2048"), OLD)
    disks = {"disk.eph1": Disk(f"ephemeral_2_{VFAT}")}
    sides = all_sides(nova, Tree(instances=[row], files=files, directories={NAME: disks}), tmp_path)
    assert {"swap_1024", f"ephemeral_2_{VFAT}", "swap_2048"} == sides.nova.removed
    assert {"swap_2048"} == sides.ours.removed
    assert ["swap_1024", "swap_512"] == state(sides.within, "used_swap_images")
    assert [f"ephemeral_1_{VFAT}", f"ephemeral_2_{VFAT}"] == state(sides.within, "used_ephemeral_images")
    assert files.keys() - sides.ours.removed == sides.ours.touched == sides.within.touched


def test_every_form_of_a_used_image_is_kept_and_marked(nova: Nova, tmp_path: Path) -> None:
    forms, ours = [BASE, f"{BASE}_sm", f"{BASE}_20"], f"{BASE}.qcow2"
    tree = Tree(instances=[instance(), instance(2, image_ref=THIRD)], files=dict.fromkeys([*forms, ours, UNUSED], OLD))
    sides = all_sides(nova, tree, tmp_path)  # the second image's file is missing, which is no error
    assert ({UNUSED}, set(forms)) == (sides.nova.removed, sides.nova.touched)
    for side in (sides.ours, sides.within):
        assert ({UNUSED}, {*forms, ours}) == (side.removed, side.touched)


@pytest.mark.parametrize("disk", ["disk.local", "disk.eph0", "disk.swap", "disk.rescue", "disk.snapshot"])
def test_every_disk_of_a_directory_keeps_its_base(nova: Nova, tmp_path: Path, disk: str) -> None:
    tree = Tree(instances=[instance()], files={UNUSED: OLD}, directories={UUID: {disk: Disk(UNUSED)}})
    sides = all_sides(nova, tree, tmp_path)
    assert ({UNUSED}, frozenset()) == (sides.nova.removed, sides.ours.removed)


def test_the_whole_backing_chain_is_kept(nova: Nova, tmp_path: Path) -> None:
    resized = f"{UNUSED}_20"
    tree = Tree(
        instances=[instance()],
        files={UNUSED: OLD, resized: OLD, BARE: OLD},
        overlays={resized: Disk(UNUSED)},
        directories={UUID: {"disk": Disk(resized)}},
    )
    sides = all_sides(nova, tree, tmp_path)
    assert ({UNUSED, BARE}, {BARE}) == (sides.nova.removed, sides.ours.removed)


def test_a_file_in_use_as_a_backing_file_only_gets_its_full_grace(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={UNUSED: OLD}, directories={UUID: {"disk": Disk(UNUSED)}})
    sides = all_sides(nova, tree, tmp_path)
    for side, manager, goes in ((sides.nova, "nova", True), (sides.within, "underlay", False)):
        assert [UNUSED] == base_names(side, "active_base_files")
        (side.root / UUID / "disk").unlink()
        again = nova.update(side.root, [], manager=manager)
        assert (None, goes) == (again["error"], UNUSED not in cache_names(side.root))
    assert {UNUSED} == sides.ours.touched


def test_a_backing_file_is_known_by_its_name_wherever_its_directory_is_said_to_be(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={UNUSED: OLD, BARE: OLD})
    for manager in ("nova", "underlay"):
        root = build(tree, tmp_path / manager)
        (root / UUID).mkdir()
        write_overlay(root / UUID / "disk", f"/somewhere/else/{UNUSED}")
        assert nova.update(root, tree.instances, manager=manager)["error"] is None
        assert {UNUSED} == cache_names(root)


# --------------------------------------------------------------------------------------------------------------- C: what goes


def test_the_lists_are_logged_as_operators_know_them(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={BASE: OLD, UNUSED: OLD, f"{BARE}_20": 1800.0})
    sides = all_sides(nova, tree, tmp_path)
    for side in (sides.nova, sides.within):
        paths = [f"{side.root}/_base/{name}" for name in sorted([UNUSED, f"{BARE}_20"])]
        told = lines(side, "INFO")
        assert f"Active base files: {side.root}/_base/{BASE}" in told
        assert [paths] == [sorted(line.split()[3:]) for line in told if line.startswith("Removable base files: ")]
        assert sorted(f"Unknown base file: {path}" for path in paths) == sorted(lines(side, "WARNING"))
        assert [UNUSED, f"{BARE}_20"] == base_names(side, "removable_base_files") or paths
    removing = [line for line in lines(sides.within, "INFO") if "Removing" in line]
    assert [True] == [
        line.startswith(f"Removing base, swap or ephemeral file: {sides.within.root}/_base/{UNUSED} (") for line in removing
    ]


@pytest.mark.parametrize(
    ("name", "limit"),
    [(UNUSED, DAY), (f"{UNUSED}_20", HOUR), (f"{UNUSED}_sm", HOUR), ("swap_512", DAY), (f"ephemeral_1_{VFAT}", DAY)],
)
def test_each_kind_has_nova_s_minimum_age(nova: Nova, tmp_path: Path, name: str, limit: float) -> None:
    for age, goes in ((limit - 60, False), (limit + 60, True)):
        sides = all_sides(nova, Tree(files={name: age}), tmp_path / str(goes))
        assert {name: goes} == {name: bool(sides.nova.removed)} == {name: bool(sides.ours.removed)}
        assert goes or any("too young to remove" in line for line in lines(sides.within, "INFO"))


def test_a_time_to_come_keeps_a_file(nova: Nova, tmp_path: Path) -> None:
    sides = all_sides(nova, Tree(files={UNUSED: -HOUR, f"{BARE}_20": -1000 * DAY}), tmp_path)
    assert frozenset() == sides.nova.removed == sides.ours.removed


def test_nothing_goes_when_removal_is_off_and_uses_are_marked_all_the_same(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(
        instances=[instance(swap_mib=[512])],
        files={BASE: OLD, UNUSED: OLD, "swap_512": OLD, "swap_1024": OLD, f"ephemeral_1_{VFAT}": OLD, f"{BARE}.part": OLD},
        options={"image_cache.remove_unused_base_images": False},
    )
    sides = all_sides(nova, tree, tmp_path)
    for side in (sides.nova, sides.ours, sides.within):
        assert (frozenset(), {BASE, "swap_512"}) == (side.removed, side.touched)
    assert [UNUSED] == base_names(sides.nova, "removable_base_files") == base_names(sides.within, "removable_base_files")


def test_a_used_swap_or_ephemeral_that_is_missing_is_told(nova: Nova, tmp_path: Path) -> None:
    row = instance(swap_mib=[512], ephemerals=[{"size_gib": 1}])
    sides = all_sides(nova, Tree(instances=[row], files={BASE: OLD}), tmp_path)
    for side in (sides.nova, sides.within):
        told = " ".join(lines(side, "WARNING"))
        assert "swap_512" in told
        assert f"ephemeral_1_{VFAT}" in told


def test_nova_s_lock_file_stays(nova: Nova, tmp_path: Path) -> None:
    sides = all_sides(nova, Tree(files={UNUSED: OLD}), tmp_path)
    assert {UNUSED} == sides.nova.removed == sides.within.removed
    assert not (sides.nova.root / "locks" / f"nova-{UNUSED}").exists()
    assert (sides.within.root / "locks" / f"nova-{UNUSED}").exists()
    assert (sides.ours.root / "locks" / f"nova-{UNUSED}").exists()


def test_a_file_whose_lock_nova_holds_is_kept_and_nova_keeps_its_lock(nova: Nova, tmp_path: Path) -> None:
    root = build(Tree(files={UNUSED: OLD, BARE: OLD}), tmp_path / "tree")
    held: dict[str, Any] = {
        "name": UNUSED,
        "manager": "underlay",
        "instances_path": os.fspath(root),
        "instances": [],
        "keep": None,
    }
    answer = nova.ask(do="lock", through="update", **held)
    assert (None, True) == (answer["error"], answer["still_locked"])
    assert {UNUSED} == cache_names(root)


def test_a_lock_whose_file_is_removed_meanwhile_excludes_nobody_so_the_file_stays(nova: Nova, tmp_path: Path) -> None:
    root = build(Tree(files={UNUSED: OLD}), tmp_path / "tree")
    ask: dict[str, Any] = {"do": "pass-while-locks-are-removed", "manager": "underlay", "through": "update", "keep": None}
    assert nova.ask(**ask, instances_path=os.fspath(root), instances=[])["error"] is None
    assert {UNUSED} == cache_names(root)


@pytest.mark.component("root", "leases")
def test_files_that_libvirt_has_given_to_qemu_s_user_go_as_they_do_with_nova(nova: Nova, open_directory: Path) -> None:
    compute, qemu = 65534, 64055
    tree = Tree(instances=[instance()], files=dict.fromkeys([BASE, UNUSED, BARE, f"{BARE}_20"], OLD))
    left = {}
    for manager in ("nova", "underlay"):
        root = build(tree, open_directory / manager)
        for path in (root, *root.rglob("*")):
            os.chown(path, compute, compute, follow_symlinks=False)
        for name in (BASE, UNUSED, BARE):
            os.chown(root / "_base" / name, qemu, qemu)
        ask: dict[str, Any] = {"do": "pass-as", "user": compute, "manager": manager, "through": "update", "keep": None}
        with (root / "_base" / BARE).open("rb"):  # a program of another user, which Nova does not heed
            answer = nova.ask(**ask, instances_path=os.fspath(root), instances=tree.instances)
        assert answer["error"] is None, answer["traceback"]
        left[manager] = cache_names(root)
        assert (qemu, True) == (
            (root / "_base" / BASE).stat().st_uid,
            (root / "_base" / BASE).stat().st_mtime > time.time() - 60,
        )
    assert {"nova": {BASE}, "underlay": {BASE, BARE}} == left


# ---------------------------------------------------------------------------------------------------------- C: what goes wrong


@pytest.mark.parametrize("content", [b"QFI\xfb" + b"\xff" * 600, b"QFI\xfb\0\0\0\3" + bytes(600)], ids=["nonsense", "empty"])
def test_one_unreadable_disk_ends_nova_s_pass_and_not_ours(nova: Nova, tmp_path: Path, content: bytes) -> None:
    instances = [instance(1), instance(2)]
    tree = Tree(
        instances=instances,
        files={BASE: OLD, f"{BASE}_20": OLD, "swap_512": OLD, f"{UNUSED}.part": OLD},
        directories={NAME: {}, instances[1]["uuid"]: {"disk.eph0": Disk(f"{BASE}_20")}},
    )
    found = {}
    for manager in ("nova", "underlay"):
        root = build(tree, tmp_path / manager)
        (root / NAME / "disk").write_bytes(content)
        answer = nova.update(root, instances, manager=manager)
        found[manager] = (answer["error"], tree.files.keys() - cache_names(root))
        assert [] == broken_disks(tree, root)
    assert found["nova"][0].startswith("InvalidDiskInfo")
    assert set() == found["nova"][1]
    # A malformed header keeps the instance's own images, and nothing else.
    assert (None, {"swap_512", f"{UNUSED}.part"}) == found["underlay"]


def test_a_disk_that_is_a_link_to_nothing_does_not_end_the_pass(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={BASE: OLD, UNUSED: OLD, "swap_512": OLD}, directories={NAME: {}})
    for manager in ("nova", "underlay"):
        root = build(tree, tmp_path / manager)
        (root / NAME / "disk").symlink_to("gone")
        assert nova.update(root, tree.instances, manager=manager)["error"] is None
        assert {BASE} == cache_names(root)


def test_a_cache_directory_that_cannot_be_listed_ends_the_pass(nova: Nova, tmp_path: Path) -> None:
    for manager in ("nova", "underlay"):
        (tmp_path / manager).mkdir()
        (tmp_path / manager / "_base").write_text("no directory")
        assert nova.update(tmp_path / manager, [], manager=manager)["error"].startswith("NotADirectoryError")


# ---------------------------------------------------------------------------------------------------------------- C: disk usage


def usage(nova: Nova, root: Path, manager: str, **options: Any) -> int:
    answer = nova.ask(do="usage", manager=manager, instances_path=os.fspath(root), options=options)
    return int(answer["usage"])


def test_disk_usage_is_what_nova_says(nova: Nova, tmp_path: Path) -> None:
    root = build(Tree(files=dict.fromkeys([BASE, f"{BASE}.part", "swap_512", "00000001"], OLD)), tmp_path / "tree")
    for number, name in enumerate([BASE, f"{BASE}.part", "swap_512", "00000001"], 1):
        (root / "_base" / name).write_bytes(os.urandom(number << 16))
    (root / "_base" / "directory").mkdir()
    os.link(root / "_base" / BASE, root / "_base" / f"{BASE}_20")
    expected = usage(nova, root, "nova")
    assert expected >= 11 << 16
    assert expected == usage(nova, root, "underlay")
    assert 0 == usage(nova, tmp_path / "missing", "underlay") == usage(nova, tmp_path / "missing", "nova")
    assert 0 == usage(nova, root, "underlay", **{"image_cache.subdirectory_name": "../../../../../../dev/shm"})


def test_nova_s_reserved_space_follows_our_disk_usage(nova: Nova, tmp_path: Path) -> None:
    root = build(Tree(files={BASE: OLD}), tmp_path / "tree")
    (root / "_base" / BASE).write_bytes(os.urandom(1 << 16))
    options = {"workarounds.reserve_disk_resource_for_image_cache": True}
    ask = {"do": "reserved", "instances_path": os.fspath(root)}
    assert [1, 1] == [nova.ask(manager=manager, options=dict(options), **ask)["reserved"] for manager in ("nova", "underlay")]


def test_disk_usage_counts_what_is_there_when_a_file_vanishes_meanwhile(nova: Nova, tmp_path: Path) -> None:
    root = build(Tree(files={BASE: OLD, UNUSED: OLD}), tmp_path / "tree")
    for name in (BASE, UNUSED):
        (root / "_base" / name).write_bytes(os.urandom(1 << 16))
    ask = {"do": "usage-while-a-file-goes", "instances_path": os.fspath(root), "goes": UNUSED}
    assert 1 << 16 <= nova.ask(manager="underlay", **ask)["usage"] < 2 << 16
    assert not (root / "_base" / UNUSED).exists()


def test_the_cache_directory_and_the_locks_are_where_nova_has_them(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={BASE: OLD})
    sides = all_sides(nova, tree, tmp_path)
    for name in ("cache_dir", "lock_path"):
        assert os.path.relpath(state(sides.nova, name), sides.nova.root) == os.path.relpath(
            state(sides.within, name), sides.within.root
        )


# ------------------------------------------------------------------------------------------- H: what Nova removes and we do not


def test_a_swap_that_no_record_names_any_more_is_kept_for_its_disk(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(
        instances=[instance(swap_mib=[512], vm_state="resized")],
        files={"swap_512": OLD, "swap_1024": OLD},
        directories={UUID: {"disk.swap": Disk("swap_512")}, f"{UUID}_resize": {"disk.swap": Disk("swap_1024")}},
    )
    sides = all_sides(nova, tree, tmp_path)
    assert ({"swap_1024"}, frozenset()) == (sides.nova.removed, sides.ours.removed)
    assert broken_disks(tree, sides.nova.root)


def test_a_directory_that_no_record_names_keeps_its_bases(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(files={UNUSED: OLD, BARE: OLD}, directories={"instance-000000ff": {"disk": Disk(UNUSED)}})
    sides = all_sides(nova, tree, tmp_path)
    assert ({UNUSED, BARE}, {BARE}) == (sides.nova.removed, sides.ours.removed)


def test_leftovers_go_once_nobody_works_on_them(nova: Nova, tmp_path: Path) -> None:
    leftovers = [f"{UNUSED}.part", f"{UNUSED}.converted", "swap_512.part"]
    tree = Tree(files={**dict.fromkeys(leftovers, OLD), f"{BARE}.part": HOUR, "notes.part": OLD})
    sides = all_sides(nova, tree, tmp_path)
    assert (frozenset(), set(leftovers)) == (sides.nova.removed, sides.ours.removed)


def test_a_resized_copy_of_one_digit_goes_as_others_do(nova: Nova, tmp_path: Path) -> None:
    sides = all_sides(nova, Tree(files={f"{UNUSED}_5": OLD}), tmp_path)
    assert (frozenset(), {f"{UNUSED}_5"}) == (sides.nova.removed, sides.ours.removed)


def test_all_resized_copies_of_a_used_image_are_kept(nova: Nova, tmp_path: Path) -> None:
    copies = [f"{BASE}_{size}" for size in (10, 20, 40, 80)]
    tree = Tree(instances=[instance()], files=dict.fromkeys(copies, OLD), directories={"elsewhere": {"disk": Disk(copies[3])}})
    sides = all_sides(nova, tree, tmp_path)
    assert sides.nova.removed
    assert (frozenset(), set(copies)) == (sides.ours.removed, sides.ours.touched)


def test_an_ephemeral_is_claimed_by_what_is_in_it_too(nova: Nova, tmp_path: Path) -> None:
    row = instance(ephemerals=[{"size_gib": 1, "guest_format": "ext4"}])
    sides = all_sides(nova, Tree(instances=[row], files={f"ephemeral_1_{EXT4}": OLD, f"ephemeral_1_{VFAT}": OLD}), tmp_path)
    assert ({f"ephemeral_1_{EXT4}"}, frozenset()) == (sides.nova.removed, sides.ours.removed)


def test_an_mkfs_command_of_the_host_names_ephemerals_as_nova_does(nova: Nova, tmp_path: Path) -> None:
    commands = ["linux=mkfs.ext4 -L %(fs_label)s -F %(target)s", "default=mkfs.xfs %(target)s"]
    rows = [instance(1, os_type="linux", ephemerals=[{"size_gib": 1}]), instance(2, ephemerals=[{"size_gib": 2}])]
    for manager in ("nova", "underlay"):
        root = build(Tree(), tmp_path / manager)
        first = nova.update(root, rows, manager=manager, options={"virt_mkfs": commands})
        names = first["state"]["used_ephemeral_images"]
        assert 2 == len({name[-7:] for name in names} - {VFAT, EXT4})
        for name in names:
            (root / "_base" / name).touch()
            os.utime(root / "_base" / name, (0, 0))
        assert nova.update(root, rows, manager=manager, options={"virt_mkfs": commands})["error"] is None
        assert set(names) == cache_names(root)


def test_the_configured_file_system_names_ephemerals_as_nova_does(nova: Nova, tmp_path: Path) -> None:
    row = instance(os_type="linux", ephemerals=[{"size_gib": 1}])
    tree = Tree(instances=[row], files={f"ephemeral_1_{EXT4}": OLD, f"ephemeral_1_{VFAT}": OLD})
    for manager in ("nova", "underlay"):
        root = build(tree, tmp_path / manager)
        assert nova.update(root, [row], manager=manager, options={"default_ephemeral_format": "ext4"})["error"] is None
        assert {f"ephemeral_1_{EXT4}"} == cache_names(root)


def test_every_host_of_nova_s_registry_has_to_say_what_it_uses_before_anything_goes(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(files={UNUSED: OLD, BARE: OLD})
    roots = [build(tree, tmp_path / manager) for manager in ("nova", "underlay")]
    for root, manager, left in zip(roots, ("nova", "underlay"), (set(), {UNUSED, BARE}), strict=True):
        (root / "compute_nodes").write_text(json.dumps({"here": time.time(), "there": time.time() - 30 * DAY}))
        assert nova.update(root, [], manager=manager)["error"] is None
        assert left == cache_names(root)
    theirs = instance(host="there", image_ref=THIRD)
    there = nova.update(roots[1], [theirs], manager="underlay", options={"host": "there"})
    assert (None, {BARE}) == (there["error"], cache_names(roots[1]))  # all of them have said it by now
    assert nova.update(roots[1], [], manager="underlay")["error"] is None
    assert {BARE} == cache_names(roots[1])


def test_a_fifo_named_disk_hangs_nobody(nova: Nova, tmp_path: Path) -> None:
    tree = Tree(instances=[instance()], files={BASE: OLD, "swap_512": OLD}, directories={NAME: {}})
    root = build(tree, tmp_path / "tree")
    os.mkfifo(root / NAME / "disk")
    assert nova.update(root, tree.instances, manager="underlay")["error"] is None
    assert BASE in cache_names(root)
    with pytest.raises(subprocess.TimeoutExpired):  # what Nova waits for
        subprocess.run(["qemu-img", "info", "-U", root / NAME / "disk"], timeout=2, check=False, capture_output=True)


def test_our_command_does_what_our_class_does(nova: Nova, tmp_path: Path) -> None:
    """One tree with most of the weak points at once."""
    rows = [
        instance(1, swap_mib=[512, 1024], ephemerals=[{"size_gib": 1}, {"size_gib": 2}]),
        instance(2, image_ref="", host="there", vm_state="resized"),
    ]
    kept = [BASE, f"{BASE}_10", f"{BASE}_20", f"{BASE}_40", "swap_512", "swap_1024", "swap_2048", f"{UNUSED}_20", UNUSED]
    going = [BARE, f"{BARE}_20", f"{BARE}_5", f"{BARE}.part", "swap_4096", f"ephemeral_4_{VFAT}"]
    tree = Tree(
        instances=rows,
        files=dict.fromkeys([*kept, *going, "notes"], OLD),
        overlays={f"{UNUSED}_20": Disk(UNUSED)},
        directories={
            UUID: {"disk.rescue": Disk(f"{UNUSED}_20")},
            f"{rows[1]['uuid']}_resize": {"disk.swap": Disk("swap_2048")},
        },
    )
    sides = all_sides(nova, tree, tmp_path)
    assert set(going) == sides.ours.removed
    root = build(tree, tmp_path / "command")
    (root / "underlay.toml").write_text(config_of(root, {}))
    records(tree, tmp_path)
    argv: list[str | Path] = [sys.executable, "-m", "underlay", "--config", root / "underlay.toml", "prune", "--json"]
    ended = subprocess.run([*argv, "--instances", tmp_path / "instances.json"], capture_output=True, check=True)
    answer = json.loads(ended.stdout)
    assert sorted(f"{root}/_base/{name}" for name in going) == sorted(answer["removed"])
    assert {*kept, "notes"} == cache_names(root)
    assert [] == broken_disks(tree, root)
