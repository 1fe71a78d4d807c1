"""The conformance suite of disk backends itself: backends that do one thing wrong each, and what finds it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from disk_stages import FakeStage

from underlay.contracts import BackendTraits
from underlay.errors import BackendUnavailable, DiskExists, DiskNotFound, Unsupported
from underlay.model import Attachment, BaseImage, DiskSpec, Extraction, ImageVersion, InstanceDisk
from underlay.testing.disk_suite import ABILITIES, CASES, Cloned, cases, impossible
from underlay.testing.fakedisks import FakeBackend
from underlay.values import replace

pytestmark = [pytest.mark.component("qemu-img")]


def case_of(name: str) -> Any:
    (found,) = (case for case in CASES if str(case) == name)
    return found


class Careless(FakeBackend):
    """Gives a disk of whatever base and size, when one has the name."""

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        return self.describe(want) if self.exists(want) else super().create(base, want)


class Hasty(FakeBackend):
    """Takes the disk that is there for another's."""

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        if self.exists(want):
            raise DiskExists(f"the disk {want.path} exists")
        return super().create(base, want)


class Tight(FakeBackend):
    """Makes disks as small as the image, whatever is asked."""

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        return super().create(base, replace(want, size=None))


class Forgetful(FakeBackend):
    """Leaves a disk behind for which there was no room."""

    def _make_room(self, size: int) -> None:
        try:
            super()._make_room(size)
        except Exception:
            self.add_image("fake://images/half", b"")
            raise


class Believing(FakeBackend):
    """Believes the header that a guest has written."""

    def describe(self, want: DiskSpec) -> InstanceDisk:
        found = super().describe(want)
        is_qcow2 = self.guest_bytes(found).startswith(b"QFI\xfb")
        return replace(found, format="qcow2") if is_qcow2 else found


class Shrinking(FakeBackend):
    """Makes disks smaller."""

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        del self._disks[disk.path].content[size:]
        return disk


class Sticky(FakeBackend):
    """Removes nothing."""

    def remove(self, disk: InstanceDisk) -> None:
        """Nothing happens."""


class Lossy(FakeBackend):
    """Writes out half of a disk."""

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        super().extract(disk, target, want)
        if want.format == "raw":
            with target.open("r+b") as file:
                file.write(bytes(1000))


class Promising(FakeBackend):
    """Says that it cannot snapshot, and does."""

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        return f"fake://images/{name}"


class Cloning(FakeBackend):
    """Clones what it does not have."""

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        try:
            return super().clone(version, want)
        except Unsupported:
            return super().clone(replace(version, locations=tuple(self._images)[:1]), want)


class Orphaned(FakeBackend):
    """Forgets what a disk was made from."""

    def describe(self, want: DiskSpec) -> InstanceDisk:
        return replace(super().describe(want), base=None, base_path=None)


class Anonymous(FakeBackend):
    """Forgets who made a disk."""

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        return super().create(base, replace(want, maker=None))


class Obliging(FakeBackend):
    """Gives a disk to whoever asks for one like it."""

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        return super().create(base, replace(want, maker=None) if self.exists(want) else want)


class Deleting(FakeBackend):
    """Removes whatever has a disk's place."""

    def remove(self, disk: InstanceDisk) -> None:
        super().remove(replace(disk, maker=None))


class Crowded(FakeBackend):
    """Puts all disks of an instance into one place."""

    def place(self, instance: str, name: str) -> Path | None:
        return Path("/fake/disks") / instance


class Blind(FakeBackend):
    """Sees nobody who has a disk open."""

    def is_open(self, disk: InstanceDisk) -> bool | None:
        return False


class Patient(FakeBackend):
    """Takes a storage that does not answer for an empty one."""

    def exists(self, want: DiskSpec) -> bool:
        try:
            return super().exists(want)
        except BackendUnavailable:
            return False

    def describe(self, want: DiskSpec) -> InstanceDisk:
        try:
            return super().describe(want)
        except BackendUnavailable as error:
            raise DiskNotFound(f"there is no disk {want.path}") from error


class Guessing(FakeBackend):
    """Tells hypervisors to find the format out themselves."""

    def attachment(self, disk: InstanceDisk) -> Attachment:
        return replace(super().attachment(disk), type="guess")


FOUND: dict[str, type[FakeBackend]] = {
    "another-disk-of-the-name-is-left-alone": Careless,
    "the-same-disk-is-there-already": Hasty,
    "a-disk-holds-the-image-and-zeros-behind-it": Tight,
    "a-disk-for-which-there-is-no-room-is-not-made": Forgetful,
    "what-a-guest-writes-is-never-taken-for-a-header": Believing,
    "a-disk-is-never-made-smaller": Shrinking,
    "a-disk-goes-without-leaving-anything": Sticky,
    "a-disk-is-extracted-whole": Lossy,
    "what-a-backend-cannot-changes-nothing": Promising,
    "an-image-that-is-elsewhere-is-not-cloned": Cloning,
    "a-disk-that-is-made-is-described-as-it-was-made": Orphaned,
    "a-disk-that-changes-says-who-made-it-still": Anonymous,
    "a-disk-is-given-to-the-maker-that-made-it": Obliging,
    "on-shared-storage-a-disk-that-another-has-made-since-stays": Deleting,
    "each-disk-has-a-place-of-its-own": Crowded,
    "a-disk-that-a-guest-has-open-is-seen-to-be": Blind,
    "a-storage-that-does-not-answer-is-told-in-time": Patient,
    "a-hypervisor-is-told-the-disks-format-and-its-place": Guessing,
}


@pytest.mark.parametrize("name", FOUND)
def test_a_broken_backend_is_found(name: str, tmp_path: Path) -> None:
    backend = FOUND[name]()
    backend.add_image("fake://images/any", bytes(1 << 20))
    if FOUND[name] is Promising:
        backend.traits = replace(backend.traits, snapshots=False)

    with pytest.raises(AssertionError) as found:
        case_of(name).run(FakeStage(tmp_path, backend=backend))

    assert str(found.value)


class Lacking(FakeStage):
    """Cannot have what it does not explain, or what nobody knows."""

    cannot: ClassVar[Mapping[type, str]] = {}


@pytest.mark.parametrize(("cannot", "why"), [({int: "of course"}, "none of the suite's"), ({Cloned: " "}, "does not say why")])
def test_a_stage_has_to_say_what_it_cannot_and_why(cannot: dict[type, str], why: str) -> None:
    Lacking.cannot = cannot
    with pytest.raises(ValueError, match=why):
        cases(Lacking)


def test_a_case_that_needs_what_a_stage_cannot_is_not_run(tmp_path: Path) -> None:
    Lacking.cannot = {Cloned: "there is nothing to clone"}
    left_out = impossible(Lacking)

    assert {case for case in CASES if Cloned in case.needs} == set(left_out)
    with pytest.raises(ValueError, match="Cloned"):
        next(iter(left_out)).run(Lacking(tmp_path))


def test_every_ability_is_needed_by_a_case() -> None:
    assert set(ABILITIES) == {ability for case in CASES for ability in case.needs}
    assert len({str(case) for case in CASES}) == len(CASES)


def test_traits_alone_decide_what_is_refused(tmp_path: Path) -> None:
    plain = BackendTraits(
        name="fake", needs_raw=True, overlays=False, disk_format="raw", on_host_filesystem=False, shared_storage=True
    )
    for name in (
        "a-disk-is-encrypted-or-refused",
        "what-a-backend-cannot-changes-nothing",
        "an-image-that-is-elsewhere-is-not-cloned",
    ):
        case_of(name).run(FakeStage(tmp_path, backend=FakeBackend(plain)))
