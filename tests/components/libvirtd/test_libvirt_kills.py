"""What is left when an instance is rebuilt, destroyed or copied by who is killed: another attempt, or driver, puts it right."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from libvirt_daemon import quiet_library
from libvirt_stage import MESSAGE, Place

from underlay.compute import states
from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.bootimage import SMALLEST, boot_line, write_qcow2
from underlay.testing.fakedriver import FakeImage, FakeInstance

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

SCRIPT = Path(__file__).parent / "libvirt_maker.py"
ANOTHER = "from another image"


@pytest.fixture
def instance(place: Place, driver: LibvirtDriver) -> FakeInstance:
    return running(place, driver, place.image(properties={"img_config_drive": "mandatory"}))


def running(place: Place, driver: LibvirtDriver, image: FakeImage) -> FakeInstance:
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    place.await_boot(instance)
    return instance


def command_of(place: Place, instance: FakeInstance, image: FakeImage) -> list[str]:
    return [sys.executable, os.fspath(SCRIPT), os.fspath(place.root), place.daemon.uri, image.id, instance.uuid]


def killed(place: Place, instance: FakeInstance, image: FakeImage, what: str, event: str, text: str) -> None:
    argv = [*command_of(place, instance, image), what, event, text.format(uuid=instance.uuid)]
    done = subprocess.run(argv, cwd=SCRIPT.parent, check=False)
    assert -signal.SIGKILL == done.returncode


# What the killed process was about to do, and whether there is a disk then.
REBUILDS = {
    "off": ("os.remove", "{uuid}/disk", True),
    "without a disk": ("os.remove", "{uuid}/disk.config", False),
    "with its new disk": ("os.rename", "{uuid}/disk.config", True),
}


@pytest.mark.parametrize("moment", REBUILDS)
def test_a_killed_rebuild_is_made_whole_by_another(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, moment: str
) -> None:
    write_qcow2(place.root / "another.qcow2", size=SMALLEST, message=ANOTHER, stays=True)
    image = FakeImage(id=f"file://{place.root}/another.qcow2", properties={"img_config_drive": "mandatory"})
    event, text, has_disk = REBUILDS[moment]
    disk, claim = (place.instances / instance.uuid / name for name in ("disk", "making"))
    killed(place, instance, image, "rebuild", event, text)
    assert (has_disk, True) == (disk.exists(), claim.exists())

    again = place.driver()
    assert (has_disk, False, states.SHUTDOWN) == (disk.exists(), claim.exists(), again.get_info(instance).state)
    again.rebuild(None, instance, image, [], None, {}, [], print, print, network_info=[])
    place.await_boot(instance)
    assert boot_line(ANOTHER) in place.console(instance)
    again.destroy(None, instance, [])
    assert [] == place.traces(instance)
    again.cleanup_host("node1")


# What the killed process was about to do, and the files of the instance that there are then.
REMOVALS = {
    "undefined": ("os.remove", "{uuid}/disk", True),
    "without a disk": ("os.rename", "{uuid}_del", True),
    "doomed": ("shutil.rmtree", "{uuid}_del", False),
}


@pytest.mark.parametrize("moment", REMOVALS)
def test_a_killed_destruction_is_finished_by_another(
    place: Place, driver: LibvirtDriver, instance: FakeInstance, moment: str
) -> None:
    event, text, is_there = REMOVALS[moment]
    killed(place, instance, place.image(), "destroy", event, text)
    assert [instance.uuid if is_there else f"{instance.uuid}_del"] == place.traces(instance)

    again = place.driver()
    assert is_there == bool(place.traces(instance))
    for _ in range(2):
        again.destroy(None, instance, [])
        assert ([], []) == (place.traces(instance), again.site.host.disks())
    again.cleanup_host("node1")


@pytest.mark.parametrize("by", ["the next driver", "its service"])
def test_a_killed_snapshot_leaves_no_copy_and_no_file(place: Place, driver: LibvirtDriver, by: str) -> None:
    instance = running(place, driver, place.large_image())
    with subprocess.Popen([*command_of(place, instance, place.image()), "snapshot"], cwd=SCRIPT.parent) as maker:
        with place.copying_slowly(instance):
            maker.kill()
            maker.wait()
            assert [] != os.listdir(place.instances / "snapshots")
            if by == "its service":
                driver.post_interrupted_snapshot_cleanup(None, instance)
            else:
                place.driver().cleanup_host("node1")

    assert [] == os.listdir(place.instances / "snapshots")
    connection = quiet_library().open(place.daemon.uri)
    assert 0 == connection.lookupByUUIDString(instance.uuid).jobInfo()[0]
    connection.close()
    assert boot_line(MESSAGE) in place.console(instance)
    driver.snapshot(None, instance, "whole", lambda *states, **more: None)
    assert ["whole"] == os.listdir(place.instances / "snapshots")
    driver.destroy(None, instance, [])
