"""Whoever resizes an instance is killed in each step: the instance is the old one or the new one, and never less than that."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from libvirt_stage import Place
from resized import LARGE, NEW, OLD, Resized, resized

from underlay.compute import states
from underlay.compute.libvirt import LibvirtDriver

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

# The moments: just before this is done to what this pattern fits, for the last time of so many. UUID stands for the instance's.
Moment = tuple[str, str] | tuple[str, str, int]
BEGIN: dict[str, Moment] = {
    "nothing is there": ("os.link", "/UUID/resizing$"),
    "the mark is there": ("open", "/UUID$", 2),  # of its making, and of making that durable
    "the directory is kept": ("os.mkdir", "/UUID$"),
    "a format is noted": ("os.rename", r"/UUID/disk\.info$"),
    "a disk is copied": ("os.setxattr", "user.underlay"),
    "the disks are copied": ("os.link", r"/UUID/disk\.config$"),
    "nobody was told": ("os.remove", "/UUID_resize/resizing$"),
}
FINISH: dict[str, Moment] = {
    "a disk is to grow": ("subprocess.Popen", '/UUID/disk".* 2147483648$'),
    "another has grown": ("subprocess.Popen", r'/UUID/disk\.eph0".* 2147483648$'),
    "swap is to be made": ("os.setxattr", "user.underlay"),
    "the guest is to start": ("socket.bind", ""),
}
CONFIRM: dict[str, Moment] = {
    "all is there": ("os.rename", "/UUID_del$"),
    "it has another name": ("shutil.rmtree", "/UUID_del$"),
}
REVERT: dict[str, Moment] = {
    "the new directory is there": ("os.rename", "/UUID_del$"),
    "the new directory has another name": ("os.rename", "/UUID$"),
    "the old directory has its name": ("shutil.rmtree", "/UUID_del$"),
    "the guest is to start": ("socket.bind", ""),
}


def killed(place: Place, one: Resized, step: str, moment: Moment) -> None:
    """The step is done in a process that dies at this moment."""
    event, pattern, *times = moment
    pattern = pattern.replace("UUID", one.instance.uuid)
    script = Path(__file__).parent / "libvirt_resizer.py"
    argv = [sys.executable, os.fspath(script), os.fspath(place.root), place.daemon.uri, one.instance.uuid, step]
    argv += [event, pattern, str(*times or (1,))]
    ended = subprocess.run(argv, cwd=script.parent, capture_output=True, text=True, check=False)
    assert -signal.SIGKILL == ended.returncode, f"{step} was not killed at {event} of {pattern}: {ended.stderr}"


@contextmanager
def at_place(place: Place, driver: LibvirtDriver) -> Iterator[Resized]:
    one = resized(place, driver)
    one.spawn()
    one.write(OLD)
    try:
        yield one
    finally:
        driver.destroy(None, one.instance, [])
        driver.delete_instance_files(one.instance)
        assert [] == place.traces(one.instance)


def started_again(place: Place) -> None:
    """A driver that starts on this host puts right what was interrupted."""
    place.driver().cleanup_host("node1")


def left_whole(one: Resized) -> None:
    names = set(os.listdir(one.directory))
    assert {"disk", "disk.eph0", "disk.swap", "disk.config", "disk.info"} <= names
    assert not [name for name in names if name.startswith(".") or name == "resizing"]


@pytest.mark.parametrize("moment", BEGIN)
def test_a_resize_that_was_killed_as_it_began_is_undone(place: Place, driver: LibvirtDriver, moment: str) -> None:
    with at_place(place, driver) as one:
        killed(place, one, "begin", BEGIN[moment])
        assert (moment == "the mark is there") == (one.directory / "resizing").exists()
        started_again(place)
        left_whole(one)
        assert ([OLD, OLD], False) == (one.read(), one.kept.exists())
        one.revert()  # as a service does with an instance that it finds so
        told = one.begin()
        one.take()
        one.finish(told, power_on=False)
        assert [OLD, OLD] == one.read()


def test_a_resize_that_was_killed_is_reverted_even_before_a_driver_starts(place: Place, driver: LibvirtDriver) -> None:
    with at_place(place, driver) as one:
        killed(place, one, "begin", BEGIN["the disks are copied"])
        one.revert()
        left_whole(one)
        assert ([OLD, OLD], False) == (one.read(), one.kept.exists())


@pytest.mark.parametrize("moment", FINISH)
@pytest.mark.parametrize("then", ["finished", "reverted"])
def test_a_resize_that_was_killed_as_it_was_finished_goes_either_way(
    place: Place, driver: LibvirtDriver, moment: str, then: str
) -> None:
    with at_place(place, driver) as one:
        told = one.begin()
        killed(place, one, "finish", FINISH[moment])
        started_again(place)
        assert one.kept.is_dir()
        if then == "finished":
            one.take()
            one.finish(told, power_on=False)
            one.confirm()
            size = LARGE.root_gb
        else:
            one.revert()
            size = 1
        left_whole(one)
        assert ([OLD, OLD], size << 30, False) == (one.read(), one.sizes()["disk"], one.kept.exists())


@pytest.mark.parametrize("moment", CONFIRM)
def test_a_confirmation_that_was_killed_is_confirmed_again(place: Place, driver: LibvirtDriver, moment: str) -> None:
    with at_place(place, driver) as one:
        told = one.begin()
        one.take()
        one.finish(told, power_on=False)
        one.write(NEW)
        killed(place, one, "confirm", CONFIRM[moment])
        started_again(place)
        assert moment == "all is there" or not one.kept.exists()
        one.confirm()
        left_whole(one)
        assert [NEW, NEW] == one.read()
        assert [] == [name for name in os.listdir(place.instances) if name.startswith(f"{one.instance.uuid}_")]


@pytest.mark.parametrize("moment", REVERT)
def test_a_reversal_that_was_killed_is_reverted_again(place: Place, driver: LibvirtDriver, moment: str) -> None:
    with at_place(place, driver) as one:
        told = one.begin()
        one.take()
        one.finish(told, power_on=False)
        one.write(NEW)
        killed(place, one, "revert", REVERT[moment])
        started_again(place)
        one.revert()
        left_whole(one)
        assert [OLD, OLD] == one.read()
        assert states.SHUTDOWN == driver.get_info(one.instance).state
        assert [] == [name for name in os.listdir(place.instances) if name.startswith(f"{one.instance.uuid}_")]
