"""One tree, pruned by the real Nova and by us, each on a copy of its own."""

import json
import subprocess
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova_environment import Nova
from nova_trees import Tree, build, mtimes

from underlay.config import parse_config
from underlay.host import Host
from underlay.inventory.file import read_file
from underlay.model import InstanceRecord


@dataclass(frozen=True, slots=True)
class Side:
    """What a pass did to its copy.

    Attributes:
        touched: names of files whose mtime changed. error: that ended the pass. answer: all that Nova's process said.
    """

    root: Path
    removed: Set[str]
    touched: Set[str]
    error: str | None = None
    answer: Mapping[str, Any] | None = None


def by_nova(nova: Nova, tree: Tree, root: Path, **how: Any) -> Side:
    """Nova's own manager, or with ``manager="underlay"`` ours within Nova."""
    build(tree, root)
    before = mtimes(root)
    answer = nova.update(root, tree.instances, options=tree.options, **how)
    after = mtimes(root)
    return Side(root, _removed(before, after), _touched(before, after), answer["error"], answer)


def by_underlay(tree: Tree, root: Path, **rules: Any) -> Side:
    """Our own pass, in this process."""
    build(tree, root)
    before = mtimes(root)
    host = host_of(root, tree.options, **rules)
    host.apply(host.plan_prune(instances=records(tree, root.parent)))
    after = mtimes(root)
    return Side(root, _removed(before, after), _touched(before, after))


def _removed(before: Mapping[str, float], after: Mapping[str, float]) -> frozenset[str]:
    return frozenset(before.keys() - after.keys())


def _touched(before: Mapping[str, float], after: Mapping[str, float]) -> frozenset[str]:
    return frozenset(name for name in after if before[name] != after[name])


def host_of(root: Path, options: Mapping[str, Any], **rules: Any) -> Host:
    """A host with Nova's options, given as the tree has them."""
    return Host.open(parse_config(config_of(root, options, **rules), origin=root / "underlay.toml"))


def config_of(root: Path, options: Mapping[str, Any], **rules: Any) -> str:
    """The configuration of such a host."""
    values = {name.removeprefix("image_cache."): value for name, value in options.items()} | rules
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    return f"""
        host = "here"
        [instances]
        path = "{root}"
        inventory = "none"
        [caches.base]
        kind = "base"
        path = "{root}/_base"
        {lines}
    """


def records(tree: Tree, scratch: Path) -> Sequence[InstanceRecord]:
    """The instances of a tree, by way of an instance file."""
    file = scratch / "instances.json"
    rows = [row | {"image_ref": row.get("image_ref") or None} for row in map(dict, tree.instances)]
    file.write_text(json.dumps(rows), encoding="utf-8")
    return read_file(file)


def broken_disks(tree: Tree, root: Path) -> list[str]:
    """The disks that qemu-img cannot open any more, with its whole chain."""
    broken = []
    for directory, disks in tree.directories.items():
        for name in disks:
            path = root / directory / name
            opened = subprocess.run(["qemu-img", "info", "-U", "--backing-chain", path], capture_output=True, check=False)
            if opened.returncode != 0:
                broken.append(f"{directory}/{name}: {opened.stderr.decode().strip()}")
    return broken
