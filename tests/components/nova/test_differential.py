"""Random trees, pruned by the real Nova and by us: the same goes where Nova endangers nothing, and no disk loses its base."""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from nova_environment import Nova, running
from nova_sides import Side, broken_disks, by_nova, by_underlay
from nova_trees import EXT4, VFAT, Tree, fingerprint, trees

from thorough import thorough
from underlay.naming import CacheKind, kind_of_name

pytestmark = [pytest.mark.component("nova"), pytest.mark.component("qemu-img")]
KEEP_RECENT, LEFTOVER_AGE = 900.0, 86400.0
NTFS = "68e98b8"
examples = settings(max_examples=thorough(40, 100), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module")
def nova() -> Iterator[Nova]:
    with running() as one:
        yield one


# Each exception, with why it is one.
ONLY_NOVA_REMOVES: Mapping[str, Callable[[str, Tree], bool]] = {
    "a name that is no image's by its grammar is a stranger's file": lambda name, tree: _kind(name) is None,
    "what was used within keep_recent may be about to be used again": lambda name, tree: 0 <= tree.files[name] < KEEP_RECENT,
    "a leftover of a resized copy is a resized copy to Nova; leftovers have an age of their own": lambda name, tree: (
        _kind(name) == "leftover" and tree.files[name] < LEFTOVER_AGE
    ),
    "an ephemeral is also claimed by the name that tells what is in it": lambda name, tree: name in _claimed_ephemerals(tree),
}
ONLY_WE_REMOVE: Mapping[str, Callable[[str, Tree], bool]] = {
    "Nova leaves what an interrupted fetch or conversion left for ever": lambda name, tree: _kind(name) == "leftover",
    "Nova overlooks a resized copy whose size has one digit": lambda name, tree: bool(re.fullmatch(r"[0-9a-f]{40}_\d", name)),
    "Nova does not see originals of ours that carry a format": lambda name, tree: name.endswith(".qcow2"),
}
# What Nova removes although it should not: nova.md, weak points 2 to 6 and 17.
ENDANGERED_BY_NOVA: Mapping[str, Callable[[str, Tree], bool]] = {
    "a disk reads from it": lambda name, tree: name in tree.needed(),
    "a file of a used image stands on it": lambda name, tree: name in _beneath_used(tree),
    "an instance's second ephemeral": lambda name, tree: name in _claimed_ephemerals(tree),
    "one of several resized copies of a used image": lambda name, tree: name[:40] in _used(tree) and _kind(name) == "resized",
}


def _kind(name: str) -> str | None:
    return kind_of_name(name, kind=CacheKind.BASE)


def _used(tree: Tree) -> set[str]:
    images = [row[key] for row in tree.instances for key in ("image_ref", "kernel_id", "ramdisk_id")]
    return {fingerprint(image) for image in images if image}


def _beneath_used(tree: Tree) -> set[str]:
    """What the files that Nova keeps for their image stand on: without it they cannot be opened."""
    found: set[str] = set()
    ahead = [disk.backing for name, disk in tree.overlays.items() if name[:40] in _used(tree)]
    while ahead:
        name = ahead.pop()
        if name is not None and name not in found:
            found.add(name)
            ahead += [tree.overlays[name].backing] if name in tree.overlays else []
    return found


def _claimed_ephemerals(tree: Tree) -> set[str]:
    suffixes = {None: VFAT, "vfat": VFAT, "ext4": EXT4, "linux": EXT4, "windows": NTFS}
    return {
        f"ephemeral_{one['size_gib']}_{suffix}"
        for row in tree.instances
        for one in row["ephemerals"]
        for suffix in (VFAT, suffixes[one["guest_format"] or row["os_type"]])
    }


def _excepted(name: str, tree: Tree, *reasons: Mapping[str, Callable[[str, Tree], bool]]) -> bool:
    return any(applies(name, tree) for those in reasons for applies in those.values())


def _both(nova: Nova, tree: Tree, scratch: str) -> tuple[Side, Side]:
    theirs, ours = by_nova(nova, tree, Path(scratch) / "nova"), by_underlay(tree, Path(scratch) / "underlay")
    assert theirs.error is None
    event(f"Nova removes {len(theirs.removed)}, Underlay {len(ours.removed)}")
    assert [] == broken_disks(tree, ours.root)
    assert set() == tree.needed() & ours.removed
    assert [] == [name for name in ours.removed - theirs.removed if not _excepted(name, tree, ONLY_WE_REMOVE)]
    return theirs, ours


@examples
@given(tree=trees(dangerous=False))
def test_where_nova_endangers_nothing_the_same_files_go(nova: Nova, tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        theirs, ours = _both(nova, tree, scratch)
        assert [] == broken_disks(tree, theirs.root), "the tree was to be one in which Nova endangers nothing"
        assert [] == [name for name in theirs.removed - ours.removed if not _excepted(name, tree, ONLY_NOVA_REMOVES)]
        assert set() == theirs.touched - ours.touched


@examples
@given(tree=trees(dangerous=True))
def test_where_nova_endangers_disks_none_of_them_loses_its_base(nova: Nova, tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        theirs, ours = _both(nova, tree, scratch)
        event("Nova broke a disk" if broken_disks(tree, theirs.root) else "Nova broke none")
        excused = (ONLY_NOVA_REMOVES, ENDANGERED_BY_NOVA)
        assert [] == [name for name in theirs.removed - ours.removed if not _excepted(name, tree, *excused)]
        assert set() == _beneath_used(tree) & ours.removed


@settings(examples, max_examples=thorough(20, 50))
@given(tree=trees(dangerous=True))
def test_within_nova_the_same_goes_as_by_our_own_command(nova: Nova, tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        theirs, ours = _both(nova, tree, scratch)
        within = by_nova(nova, tree, Path(scratch) / "within", manager="underlay")
        assert None is within.error
        assert (ours.removed, ours.touched) == (within.removed, within.touched)
        assert theirs.answer is not None
        assert within.answer is not None
        for name in ("used_images", "instance_names", "back_swap_images", "back_ephemeral_images"):
            assert theirs.answer["state"][name] == within.answer["state"][name]
        for name in ("used_swap_images", "used_ephemeral_images"):
            assert set(theirs.answer["state"][name]) <= set(within.answer["state"][name])
