"""Our pass and Nova's own over one directory at the same time: neither fails, and both together do what each would alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nova_environment import Nova, running
from nova_sides import broken_disks, host_of, records
from nova_trees import IMAGES, Disk, Tree, build, cache_names, fingerprint

pytestmark = [pytest.mark.component("nova"), pytest.mark.component("qemu-img")]
OLD = 200000.0
UUID = "00000001-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def nova() -> Iterator[Nova]:
    with running() as one:
        yield one


def _tree() -> Tree:
    """Sixty files that go, and three that stay: of the instance's image, beneath its disk, beneath its swap."""
    kept = [fingerprint(IMAGES[0]), fingerprint(IMAGES[1]), "swap_512"]
    going = [f"{number:040x}" for number in range(40)] + [f"{number:040x}_20" for number in range(20)]
    row = {"uuid": UUID, "name": "instance-00000001", "host": "here", "image_ref": IMAGES[0], "swap_mib": 512}
    disks = {"disk": Disk(kept[1]), "disk.swap": Disk(kept[2])}
    return Tree(instances=[row], files=dict.fromkeys([*kept, *going], OLD), directories={UUID: disks})


@pytest.mark.parametrize("turn", range(5))
def test_nova_s_pass_and_ours_at_once_remove_what_is_unused_and_nothing_else(nova: Nova, tmp_path: Path, turn: int) -> None:
    tree = _tree()
    root = build(tree, tmp_path / "tree")
    host = host_of(root, {})
    plan = host.plan_prune(instances=records(tree, tmp_path))
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(nova.update, root, tree.instances)
        ours = host.apply(plan)
    # Nova's pass ends when a file goes between its look whether that is there and the one at its age; its next goes on.
    if error := theirs.result()["error"]:
        assert error.startswith("FileNotFoundError")
        assert nova.update(root, tree.instances)["error"] is None
    assert [] == list(ours.problems)
    assert {fingerprint(IMAGES[0]), fingerprint(IMAGES[1]), "swap_512"} == cache_names(root)
    assert [] == broken_disks(tree, root)
    assert [] == list((root / "_base/.underlay/trash").iterdir())
