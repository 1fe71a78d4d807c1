"""QEMU's guest agent in real guests: file systems are frozen and thawed, snapshots are of frozen ones, passwords are set."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import linux_guest
import pytest
from libvirt_daemon import Daemon
from libvirt_stage import Place, wait_until
from linux_guest import HOOK, LINKS, SHADOW, SLOW, WITHOUT_AGENT, WROTE, LinuxGuest
from linux_stage import LinuxPlace, LinuxStage

from underlay.compute import states
from underlay.compute.errors import (
    InstanceNotFound,
    InstanceNotRunning,
    InstanceQuiesceFailed,
    InternalError,
    QemuGuestAgentNotEnabled,
)
from underlay.compute.libvirt import LibvirtDriver, guestagent
from underlay.testing.compute_suite import CASES, Ability, Case
from underlay.testing.fakedriver import FakeImage, FakeInstance, fake_vif

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component(
    "libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip", "mkfs.ext4", "linux-guest"
)

AGENT_CASES = [case for case in CASES if Ability.AGENT in case.needs]
FROZEN = 1.5  # seconds in which a guest that is not frozen writes several times


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> LinuxGuest:
    return linux_guest.make(tmp_path_factory.mktemp("linux"))


@pytest.fixture
def linux(guest: LinuxGuest, daemon: Daemon, tmp_path: Path) -> LinuxPlace:
    return place_of(guest, daemon, tmp_path)


@pytest.fixture
def driver(linux: LinuxPlace) -> Iterator[LibvirtDriver]:
    driver = linux.place.driver()
    yield driver
    driver.cleanup_host("node1")


@dataclass(frozen=True, slots=True)
class Up:
    """A guest whose agent answers, for tests that leave it so."""

    linux: LinuxPlace
    driver: LibvirtDriver
    instance: FakeInstance

    @property
    def image(self) -> FakeImage:
        found: FakeImage = self.instance.image_meta
        return found

    def heard(self) -> list[str]:
        """What the agent's hook has heard."""
        return self.linux.lines(self.instance, HOOK)

    def await_hook(self, heard: list[str]) -> None:
        """Wait until it has heard of a freeze and of a thaw: they may be told later than the agent answers."""
        both = lambda: "freeze thaw" in " ".join(self.heard()[len(heard) :])  # noqa: E731
        wait_until(both, "the hook hears of both")

    def is_frozen(self) -> bool:
        return is_frozen(self.linux, self.instance)

    def goes_on(self) -> bool:
        return goes_on(self.linux, self.instance)

    @contextmanager
    def told(self, **properties: str) -> Iterator[FakeImage]:
        """Its image has further properties in the block."""
        before = self.image.properties
        self.image.properties = {**before, **properties}
        try:
            yield self.image
        finally:
            self.image.properties = before


@pytest.fixture(scope="module")
def up(guest: LinuxGuest, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    linux = place_of(guest, daemon, tmp_path_factory.mktemp("up"))
    driver = linux.place.driver()
    with running(driver, linux, linux.image()) as instance:
        linux.await_agent(driver, instance)
        yield Up(linux, driver, instance)
    driver.cleanup_host("node1")


def place_of(guest: LinuxGuest, daemon: Daemon, directory: Path) -> LinuxPlace:
    return LinuxPlace(Place(directory, daemon), linux_guest.linked(guest, directory))


@contextmanager
def running(driver: LibvirtDriver, linux: LinuxPlace, image: FakeImage) -> Iterator[FakeInstance]:
    instance = linux.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    try:
        linux.await_up(instance)
        yield instance
    finally:
        driver.destroy(None, instance, [])


def is_frozen(linux: LinuxPlace, instance: FakeInstance) -> bool:
    """Whether it comes to write nothing; what was on its way may still arrive."""
    for _ in range(5):
        before = linux.lines(instance, WROTE)
        time.sleep(FROZEN)
        if before == linux.lines(instance, WROTE):
            return True
    return False


def goes_on(linux: LinuxPlace, instance: FakeInstance) -> bool:
    """Whether it writes, as soon as it may: the first number may have been on its way."""
    before = len(linux.lines(instance, WROTE))
    wait_until(lambda: len(linux.lines(instance, WROTE)) > before + 1, "the guest writes")
    return True


@pytest.mark.parametrize("case", AGENT_CASES, ids=str)
def test_the_driver_keeps_its_contract_with_an_agent(
    case: Case, guest: LinuxGuest, daemon: Daemon, bridge: str, tmp_path: Path
) -> None:
    stage = LinuxStage(Place(tmp_path, daemon), bridge, (29_000, 29_011), guest=linux_guest.linked(guest, tmp_path))
    try:
        case.run(stage)
    finally:
        for driver in stage.drivers:
            driver.cleanup_host("node1")


def test_a_guest_writes_nothing_between_quiesce_and_unquiesce(up: Up) -> None:
    driver, instance, image, heard = up.driver, up.instance, up.image, up.heard()
    driver.quiesce(None, instance, image)
    assert up.is_frozen()
    with pytest.raises(InstanceQuiesceFailed, match="frozen"):  # and that does not thaw it
        driver.quiesce(None, instance, image)
    assert up.is_frozen()
    for _ in range(2):
        driver.unquiesce(None, instance, image)
    assert up.goes_on()
    up.await_hook(heard)


def test_who_is_killed_after_a_freeze_leaves_a_guest_that_can_be_thawed(up: Up) -> None:
    up.driver.quiesce(None, up.instance, up.image)
    up.driver.post_interrupted_snapshot_cleanup(None, up.instance)
    assert up.goes_on()


def test_what_fails_while_file_systems_are_frozen_thaws_them(up: Up) -> None:
    def fail() -> None:
        assert up.is_frozen()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), guestagent.quiesced(up.driver.site, up.instance, up.image):
        fail()
    assert up.goes_on()


def test_who_is_killed_in_a_snapshot_leaves_a_guest_that_the_next_driver_thaws(up: Up) -> None:
    left = up.driver.site.host.config.instances / "snapshots" / f".{up.instance.uuid}.0badcafe"
    left.mkdir(parents=True)
    (left / "maker").write_text("node1")
    up.driver.quiesce(None, up.instance, up.image)
    up.linux.place.driver().cleanup_host("node1")
    assert up.goes_on()
    assert not left.exists()


def test_file_systems_are_thawed_by_a_libvirt_that_was_restarted_meanwhile(up: Up, daemon: Daemon) -> None:
    later = threading.Timer(2, daemon.start)
    with guestagent.quiesced(up.driver.site, up.instance, up.image):
        daemon.stop()
        later.start()
    later.join()
    assert up.goes_on()


def test_file_systems_of_a_guest_that_is_paused_meanwhile_are_thawed_when_it_goes_on(up: Up) -> None:
    later = threading.Timer(2, up.driver.unpause, [up.instance])
    with guestagent.quiesced(up.driver.site, up.instance, up.image):
        up.driver.pause(up.instance)
        later.start()
    later.join()
    assert up.goes_on()


def test_a_password_is_set_by_the_agent(up: Up) -> None:
    up.driver.set_admin_password(up.instance, "correct horse: ü")
    wait_until(lambda: len(up.linux.lines(up.instance, SHADOW)) > 1, "the guest has another password")
    kept = up.linux.lines(up.instance, SHADOW)[-1].split(":")[1]
    assert kept == crypt("correct horse: ü", kept)


@pytest.mark.parametrize(
    ("os_type", "properties", "user"),
    [("linux", {"os_admin_user": "nobody-here"}, "nobody-here"), ("windows", {}, "Administrator")],
)
def test_the_user_is_who_the_image_says(up: Up, os_type: str, properties: dict[str, str], user: str) -> None:
    instance = replace(up.instance, os_type=os_type)
    with up.told(**properties), pytest.raises(InternalError, match=f"the password of {user} could not be set") as failed:
        up.driver.set_admin_password(instance, "battery")
    assert "battery" not in str(failed.value)


def crypt(password: str, salt: str) -> str:
    argv = ["perl", "-e", "print crypt($ARGV[0], $ARGV[1])", password, salt]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_an_agent_that_is_not_there_or_does_not_answer_is_said(linux: LinuxPlace, driver: LibvirtDriver) -> None:
    image, without = linux.image(words=WITHOUT_AGENT), linux.image(agent=False)
    changes: list[Callable[[FakeInstance, FakeImage], None]] = [
        lambda instance, image: driver.quiesce(None, instance, image),
        lambda instance, image: driver.unquiesce(None, instance, image),
    ]
    with running(driver, linux, image) as instance:
        for change in changes:
            with pytest.raises(InstanceQuiesceFailed, match="does not answer"):
                change(instance, image)
            with pytest.raises(QemuGuestAgentNotEnabled, match="does not say") as refused:
                change(instance, without)
            assert "hw_qemu_guest_agent" in str(refused.value.hint)
            with pytest.raises(InstanceNotFound):
                change(linux.instance(image), image)
        with pytest.raises(NotImplementedError, match="does not answer"):
            driver.set_admin_password(instance, "battery")
        assert states.RUNNING == driver.get_info(instance).state
        driver.power_off(instance)
        for change in changes:
            with pytest.raises(InstanceNotRunning):
                change(instance, image)
        with pytest.raises(InstanceNotRunning):
            driver.set_admin_password(instance, "battery")
        driver.post_interrupted_snapshot_cleanup(None, instance)


def test_a_guest_without_a_line_to_an_agent_has_none_whatever_its_image_says_now(
    linux: LinuxPlace, driver: LibvirtDriver
) -> None:
    image = linux.place.image()
    instance = linux.place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    with pytest.raises(QemuGuestAgentNotEnabled, match="does not say"):
        driver.set_admin_password(instance, "battery")
    image.properties = {"hw_qemu_guest_agent": "yes"}
    with pytest.raises(QemuGuestAgentNotEnabled, match="was not given a line"):
        driver.quiesce(None, instance, image)
    with pytest.raises(QemuGuestAgentNotEnabled, match="was not given a line"):
        driver.set_admin_password(instance, "battery")
    driver.destroy(None, instance, [])


@pytest.mark.long
def test_an_agent_that_is_late_leaves_nothing_frozen(linux: LinuxPlace) -> None:
    driver, image = linux.place.driver(more='timeout = "4s"'), linux.image(words=SLOW)
    try:
        with running(driver, linux, image) as instance:
            linux.await_agent(driver, instance)
            with pytest.raises(InstanceQuiesceFailed, match="does not answer"):
                driver.quiesce(None, instance, image)
            wait_until(lambda: "freeze" in linux.lines(instance, HOOK), "it freezes, though nobody waits any more")
            wait_until(lambda: "thaw" in linux.lines(instance, HOOK), "and is thawed")
            assert goes_on(linux, instance)
    finally:
        driver.cleanup_host("node1")


def test_who_is_interrupted_while_a_guest_freezes_leaves_nothing_frozen(linux: LinuxPlace, driver: LibvirtDriver) -> None:
    image = linux.image(words=SLOW)
    with running(driver, linux, image) as instance:
        linux.await_agent(driver, instance)
        with interrupted_in(2), pytest.raises(KeyboardInterrupt):
            driver.quiesce(None, instance, image)
        wait_until(lambda: "freeze" in linux.lines(instance, HOOK), "it freezes, though nobody waits any more")
        wait_until(lambda: "thaw" in linux.lines(instance, HOOK), "and is thawed")
        assert goes_on(linux, instance)


@contextmanager
def interrupted_in(seconds: float) -> Iterator[None]:
    """Who is in the block is interrupted, as from a terminal."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------------------------------- snapshots


def is_clean(snapshot: Path) -> bool:
    """Whether the journal of the file system in a snapshot has nothing to be replayed: nobody wrote when it was taken."""
    raw = snapshot.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", snapshot, raw], check=True)
    told = subprocess.run(["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True).stdout
    [features] = [line for line in told.splitlines() if line.startswith("Filesystem features:")]
    return "needs_recovery" not in features


def taken(linux: LinuxPlace, driver: LibvirtDriver, instance: FakeInstance) -> Path:
    image_id = str(uuid4())
    driver.snapshot(None, instance, image_id, lambda *states, **more: None)
    return linux.place.instances / "snapshots" / image_id


@pytest.mark.parametrize("required", ["yes", "no"])
def test_a_live_snapshot_is_of_frozen_file_systems(up: Up, required: str) -> None:
    heard = up.heard()
    with up.told(os_require_quiesce=required):
        assert is_clean(taken(up.linux, up.driver, up.instance))
    up.await_hook(heard)
    assert up.goes_on()


def test_a_snapshot_without_an_agent_is_taken_unless_it_has_to_be_of_frozen_file_systems(
    linux: LinuxPlace, driver: LibvirtDriver
) -> None:
    image = linux.image(words=WITHOUT_AGENT)
    with running(driver, linux, image) as instance:
        assert not is_clean(taken(linux, driver, instance))
        image.properties = {**image.properties, "os_require_quiesce": "True"}
        with pytest.raises(InstanceQuiesceFailed, match="does not answer"):
            taken(linux, driver, instance)
        image.properties = {**image.properties, "hw_qemu_guest_agent": "no"}
        with pytest.raises(QemuGuestAgentNotEnabled):
            taken(linux, driver, instance)
        assert 2 == len(os.listdir(linux.place.instances / "snapshots"))  # the one, and what it was converted to
        driver.power_off(instance)
        taken(linux, driver, instance)  # nobody writes


# ------------------------------------------------------------------------------------------------------------------ interfaces


def test_linux_lets_go_of_an_interface(up: Up, bridge: str) -> None:
    vif = fake_vif(40, bridge=bridge)
    up.driver.attach_interface(None, up.instance, up.image, vif)
    wait_until(lambda: up.linux.lines(up.instance, LINKS)[-1:] == ["eth0 lo"], "the guest has an interface")
    up.driver.detach_interface(None, up.instance, vif)
    wait_until(lambda: up.linux.lines(up.instance, LINKS)[-1:] == ["lo"], "the guest has it no more")
