"""Which hosts are believed to share the directory of instances, without any libvirt."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import Machine
from underlay.compute.libvirt.sharing import announce, is_shared_with
from underlay.config import parse_config
from underlay.host import Host

HERE, THERE = "192.0.2.1", "192.0.2.2"
CONFIG = """
host = "{name}"
[instances]
path = "{instances}"
hosts = ["node1", "node2"]
[caches.base]
kind = "base"
path = "{instances}/_base"
"""


def host_of(machine: Machine, name: str) -> Host:
    text = CONFIG.format(name=name, instances=machine.instances)
    return Host.open(parse_config(text, origin=machine.root / f"{name}.toml"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine.make(tmp_path)
    announce(host_of(found, "node2"), THERE)
    return found


def said_by(machine: Machine, name: str) -> Path:
    return machine.instances / f".underlay-host-{name}.json"


def test_a_host_is_believed_what_it_says_of_itself(machine: Machine) -> None:
    here = host_of(machine, "node1")
    assert (True, False) == (is_shared_with(here, THERE), is_shared_with(here, HERE))
    announce(here, HERE)
    assert (False, True) == (is_shared_with(here, HERE), is_shared_with(host_of(machine, "node2"), HERE))
    assert 0o644 == said_by(machine, "node1").stat().st_mode & 0o777


def test_a_host_that_has_moved_is_where_it_says_now(machine: Machine) -> None:
    announce(host_of(machine, "node2"), "192.0.2.3")
    here = host_of(machine, "node1")
    assert (False, True) == (is_shared_with(here, THERE), is_shared_with(here, "192.0.2.3"))


def directory(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.with_name(".underlay-host-node2.json"))


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def garbled(path: Path) -> None:
    path.write_bytes(b"\xff{")


def others(path: Path) -> None:
    path.write_text('{"host": "node2", "address": "192.0.2.9"}')


@pytest.mark.parametrize("put", [directory, fifo, link, dangling, garbled, others])
def test_what_is_no_hosts_word_is_passed_over(machine: Machine, put: Callable[[Path], None]) -> None:
    put(said_by(machine, "a"))
    here = host_of(machine, "node1")
    announce(here, HERE)
    assert said_by(machine, "node1").exists()
    assert (True, False) == (is_shared_with(here, THERE), is_shared_with(here, "192.0.2.9"))


def test_a_host_that_cannot_say_anything_goes_on(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    said_by(machine, "node1").mkdir()
    announce(host_of(machine, "node1"), HERE)
    assert "other hosts are not told" in caplog.text
    assert not is_shared_with(host_of(machine, "node2"), HERE)
