"""The tree of resource providers: what it knows, and what it refuses."""

import copy
import pickle
import threading
from typing import Any

import pytest

from underlay.compute import ProviderTree

ROOT, CHILD, GRANDCHILD, OTHER = "u-root", "u-child", "u-grandchild", "u-other"
INVENTORY = {"VCPU": {"total": 8, "reserved": 0}}


@pytest.fixture
def tree() -> ProviderTree:
    """Two trees, one of them of three."""
    tree = ProviderTree()
    tree.new_root("root", ROOT, generation=1)
    tree.new_child("child", ROOT, CHILD)
    tree.new_root("other", OTHER)
    tree.new_child("grandchild", "child", GRANDCHILD, generation=4)
    return tree


def test_providers_are_found_by_name_and_by_uuid_parents_first(tree: ProviderTree) -> None:
    assert [ROOT, CHILD, GRANDCHILD, OTHER] == tree.get_provider_uuids()
    assert [CHILD, GRANDCHILD] == tree.get_provider_uuids("child") == tree.get_provider_uuids(CHILD)
    assert [ROOT, CHILD, GRANDCHILD] == tree.get_provider_uuids_in_tree(GRANDCHILD)
    assert [ROOT, OTHER] == [one.uuid for one in tree.roots]
    assert (tree.exists("grandchild"), tree.exists("nobody")) == (True, False)
    assert ("grandchild", 4, CHILD) == (
        tree.data(GRANDCHILD).name,
        tree.data(GRANDCHILD).generation,
        tree.data("grandchild").parent_uuid,
    )


def test_a_child_without_a_uuid_gets_one(tree: ProviderTree) -> None:
    uuid = tree.new_child("new", "other")
    assert 36 == len(uuid)
    assert OTHER == tree.data(uuid).parent_uuid


@pytest.mark.parametrize(
    "add",
    [
        lambda tree: tree.new_root("new", ROOT),
        lambda tree: tree.new_root("child", "u-new"),
        lambda tree: tree.new_child("child", ROOT, "u-new"),
        lambda tree: tree.new_child("new", ROOT, GRANDCHILD),
        lambda tree: tree.new_child("new", "nobody"),
    ],
)
def test_a_second_provider_of_a_name_or_a_uuid_is_refused(tree: ProviderTree, add: Any) -> None:
    with pytest.raises(ValueError, match="provider"):
        add(tree)
    assert 4 == len(tree.get_provider_uuids())


@pytest.mark.parametrize(
    "ask",
    [
        lambda tree: tree.data("nobody"),
        lambda tree: tree.remove("nobody"),
        lambda tree: tree.get_provider_uuids("nobody"),
        lambda tree: tree.get_provider_uuids_in_tree("nobody"),
        lambda tree: tree.has_inventory("nobody"),
        lambda tree: tree.update_inventory("nobody", {}),
        lambda tree: tree.update_traits("nobody", []),
        lambda tree: tree.add_aggregates("nobody", "a"),
        lambda tree: tree.update_resources("nobody", {}),
    ],
)
def test_a_provider_that_is_not_there_is_an_error(tree: ProviderTree, ask: Any) -> None:
    with pytest.raises(ValueError, match="there is no provider nobody"):
        ask(tree)


def test_a_provider_goes_with_all_below_it(tree: ProviderTree) -> None:
    tree.remove("child")
    assert [ROOT, OTHER] == tree.get_provider_uuids()


def test_inventory_replaces_the_old_one_whole(tree: ProviderTree) -> None:
    assert not tree.has_inventory(ROOT)
    assert tree.update_inventory(ROOT, INVENTORY, generation=7)
    assert (tree.has_inventory(ROOT), 7) == (True, tree.data(ROOT).generation)
    assert not tree.update_inventory("root", copy.deepcopy(INVENTORY))
    assert 7 == tree.data(ROOT).generation
    assert tree.update_inventory(ROOT, {"DISK_GB": {"total": 1}})
    assert {"DISK_GB": {"total": 1}} == tree.data(ROOT).inventory


@pytest.mark.parametrize(
    ("new", "changed"),
    [
        ({"VCPU": {"total": 8}}, False),  # what is not said again is as it was
        ({"VCPU": {"total": 9}}, True),
        ({"VCPU": {"total": 8, "step_size": 1}}, True),
        ({}, True),
        ({**INVENTORY, "DISK_GB": {}}, True),
    ],
)
def test_another_inventory_is_noticed(tree: ProviderTree, new: dict[str, Any], changed: bool) -> None:  # noqa: FBT001
    tree.update_inventory(ROOT, INVENTORY)
    assert changed is tree.has_inventory_changed(ROOT, new)


def test_traits_and_aggregates_are_sets(tree: ProviderTree) -> None:
    assert tree.update_traits(ROOT, ["A", "B", "A"], generation=3)
    assert not tree.update_traits(ROOT, {"A", "B"})
    tree.add_traits(ROOT, "C")
    tree.remove_traits(ROOT, "A", "Z")
    assert ({"B", "C"}, 3) == (tree.data(ROOT).traits, tree.data(ROOT).generation)
    assert (True, True, False) == (tree.has_traits(ROOT, []), tree.has_traits(ROOT, ["B"]), tree.has_traits(ROOT, ["A", "B"]))
    assert tree.have_traits_changed(ROOT, ["B"])
    assert tree.update_aggregates(ROOT, ["x"])
    tree.add_aggregates(ROOT, "y")
    tree.remove_aggregates(ROOT, "x")
    assert {"y"} == tree.data(ROOT).aggregates
    assert tree.in_aggregates(ROOT, ["y"])
    assert not tree.have_aggregates_changed(ROOT, ["y"])


def test_a_sharing_provider_has_the_trait_and_the_class(tree: ProviderTree) -> None:
    tree.update_inventory(OTHER, {"DISK_GB": {"total": 1}})
    tree.update_traits(ROOT, ["MISC_SHARES_VIA_AGGREGATE"])
    assert not tree.has_sharing_provider("DISK_GB")
    tree.update_traits(OTHER, ["MISC_SHARES_VIA_AGGREGATE"])
    assert tree.has_sharing_provider("DISK_GB")


def test_what_is_told_is_a_copy(tree: ProviderTree) -> None:
    given = copy.deepcopy(INVENTORY)
    tree.update_inventory(ROOT, given)
    given["VCPU"]["total"] = 0
    tree.data(ROOT).inventory["VCPU"]["total"] = 1
    tree.data(ROOT).traits.add("A")
    assert (INVENTORY, set()) == (tree.data(ROOT).inventory, tree.data(ROOT).traits)
    assert tree.update_resources(ROOT, {"VPMEM": {"one"}})
    assert not tree.update_resources(ROOT, {"VPMEM": {"one"}})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tree: pickle.loads(pickle.dumps(tree))])
def test_a_copy_of_the_tree_is_another_tree(tree: ProviderTree, copied: Any) -> None:
    other = copied(tree)
    other.remove("root")
    assert ([OTHER], 4) == (other.get_provider_uuids(), len(tree.get_provider_uuids()))
    other.new_root("root", ROOT)


def test_providers_of_placement_are_added_in_any_order(tree: ProviderTree) -> None:
    coming = [
        {"uuid": "n2", "name": "two", "generation": 2, "parent_provider_uuid": "n1"},
        {"uuid": "n1", "name": "one", "generation": 1, "parent_provider_uuid": None},
        {"uuid": CHILD, "name": "child", "generation": 9, "parent_provider_uuid": ROOT},
    ]
    tree.populate_from_iterable(coming)
    assert {ROOT, CHILD, OTHER, "n1", "n2"} == set(tree.get_provider_uuids())  # what was below the replaced one has gone
    assert (9, "n1") == (tree.data(CHILD).generation, tree.data("two").parent_uuid)
    tree.populate_from_iterable([])
    assert 5 == len(tree.get_provider_uuids())


def test_providers_without_their_parents_are_refused(tree: ProviderTree) -> None:
    with pytest.raises(ValueError, match="no such parents: nobody"):
        tree.populate_from_iterable(
            [{"uuid": ROOT, "name": "root"}, {"uuid": "n", "name": "n", "parent_provider_uuid": "nobody"}]
        )
    circle = [{"uuid": a, "name": a, "parent_provider_uuid": b} for a, b in (("n1", "n2"), ("n2", "n1"))]
    with pytest.raises(ValueError, match="below another: n1, n2"):
        tree.populate_from_iterable(circle)
    below = [{"uuid": ROOT, "name": "root"}, {"uuid": "n", "name": "n", "parent_provider_uuid": GRANDCHILD}]
    with pytest.raises(ValueError, match=f"no provider {GRANDCHILD}"):  # it goes with what is replaced
        tree.populate_from_iterable(below)
    assert 4 == len(tree.get_provider_uuids())


def test_threads_that_change_one_tree_lose_nothing(tree: ProviderTree) -> None:
    def add(number: int) -> None:
        for one in range(50):
            tree.add_traits(ROOT, f"T{number}_{one}")

    threads = [threading.Thread(target=add, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 == len(tree.data(ROOT).traits)
