"""A host's scrub: who needs what is damaged is named, nobody is served it, and its source is asked for the same bytes again."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from machine import MIB, Machine
from test_scrub import Heard, flip
from underlay import Host, Scrubbed, ScrubReport
from underlay.errors import (
    ImageDamaged,
    InvalidRef,
    InvalidSize,
    NotCached,
    UnknownCache,
    UnknownScheme,
    UnsafeImage,
)
from underlay.model import BaseImage
from underlay.store import images
from underlay.testing.httpserver import Served, serving

AGES_AGO = 10**18  # nanoseconds since the epoch
MASTERS = '[caches.masters]\nkind = "masters"\npath = "{root}/masters"\n'


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "masters").mkdir()
    return Machine.make(tmp_path, extra=MASTERS.format(root=tmp_path))


@pytest.fixture
def image(machine: Machine) -> BaseImage:
    return machine.host().ensure(machine.raw_image())


def damage(image: BaseImage) -> bytes:
    """Change a bit where there is content; what the file has now."""
    flip(image.path, 600)
    return image.path.read_bytes()


def one(report: ScrubReport) -> Scrubbed:
    [scrubbed] = report.images
    return scrubbed


def repair(report: ScrubReport) -> str:
    scrubbed = one(report)
    assert "damaged" == scrubbed.outcome
    assert scrubbed.repair is not None
    return scrubbed.repair.code


# ----------------------------------------------------------------------------------------------------------------- never served


def test_a_damaged_image_is_served_by_no_name(machine: Machine, image: BaseImage) -> None:
    host = machine.host()
    damage(image)
    host.scrub(refetch=False)

    for text in (image.name, image.name[:10], str(image.path)):
        with pytest.raises(ImageDamaged):
            host.find(text)
        with pytest.raises(ImageDamaged):
            host.create_disk("web-1", text)
        with pytest.raises(ImageDamaged):
            host.pin(text, holder="me")
        with pytest.raises(ImageDamaged):
            host.lease(text, holder="me", seconds=60)
    with pytest.raises(ImageDamaged):
        host.find(image.ref or "")
    with pytest.raises(ImageDamaged):
        host.create_disk("web-1", image)  # who had it before it was found out
    assert not (machine.instances / "web-1").exists()
    assert ([], ["image-damaged"]) == (host.images(cache="base")[0], [problem.code for problem in host.images()[1]])


@pytest.mark.parametrize("cache", ["base", "masters"])
def test_who_asks_for_the_ref_gets_it_fetched_again(machine: Machine, cache: str) -> None:
    host, ref = machine.host(), machine.raw_image()
    image = host.ensure(ref, cache=cache)
    good = image.path.read_bytes()
    damage(image)
    host.scrub(refetch=False)

    ensured = host.fetch(ref, cache=cache)

    assert ("fetched", image.name) == (ensured.reason.code, ensured.image.name)
    assert good == ensured.image.path.read_bytes()
    assert "sound" == one(host.scrub()).outcome


def test_a_damaged_master_is_not_delivered_while_its_source_is_silent(machine: Machine) -> None:
    host, ref = machine.host(), machine.raw_image()
    image = host.ensure(ref, cache="masters")
    wrong = damage(image)
    host.scrub(refetch=False)
    os.rename(machine.root / "image.raw", machine.root / "away")

    with pytest.raises(Exception, match="does not exist"):
        host.deliver(ref, machine.root / "delivered")

    assert not (machine.root / "delivered").exists()
    assert wrong == image.path.read_bytes()


def test_a_disk_of_the_ref_is_made_on_the_image_that_was_fetched_again(machine: Machine, image: BaseImage) -> None:
    host, ref = machine.host(), image.ref or ""
    damage(image)
    host.scrub(refetch=False)

    disk = host.create_disk("web-1", ref)

    assert image.path == disk.base_path
    assert images_are_equal(image.path, machine.root / "image.raw")


def images_are_equal(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


# ----------------------------------------------------------------------------------------------------------------------- repair


def test_it_is_fetched_again_and_its_disks_stand_on_the_right_bytes(machine: Machine, image: BaseImage) -> None:
    host = machine.host()
    disk = host.create_disk("web-1", image)
    host.lease(image.name, holder="nightly", seconds=3600)
    damage(image)
    with image.path.open("rb") as guest:
        before = guest.read()
        report = host.scrub()
        guest.seek(0)
        assert before == guest.read()  # who has it open is not disturbed

    assert "refetched" == repair(report)
    told = {user.code: user.detail for user in one(report).users}
    assert {"backing-file", "lease", "open"} == told.keys()
    assert str(disk.path) == told["backing-file"]
    assert "until it is closed" in (one(report).repair or one(report)).detail
    assert images_are_equal(image.path, machine.root / "image.raw")
    assert disk == host.disk("web-1")
    assert host.find(image.name)
    assert [] == [lease for _, lease in host.leases() if lease.holder != "nightly"]
    assert 35 == report.exit_code


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("cache", ["base", "masters"])
@pytest.mark.parametrize("raw", [True, None])
def test_the_same_form_comes_again_under_the_same_name(machine: Machine, cache: str, *, raw: bool | None) -> None:
    host, ref = machine.host(), machine.qcow2_image()
    image = host.ensure(ref, cache=cache, raw=raw)
    good = image.path.read_bytes()
    damage(image)

    assert "refetched" == repair(host.scrub([image.name]))

    assert good == image.path.read_bytes()
    assert [image.name] == [found.name for found in host.find(image.name)]


@pytest.mark.component("qemu-img")
def test_a_raw_form_is_made_again_of_the_image_as_it_was_served_without_a_transfer(machine: Machine) -> None:
    host, ref = machine.host(), machine.qcow2_image()
    host.ensure(ref, raw=False)
    image = host.ensure(ref, raw=True)
    good = image.path.read_bytes()
    damage(image)
    report = host.scrub([image.name])
    assert "refetched" == repair(report)
    assert good == image.path.read_bytes()


def test_a_kernel_comes_again_as_one(machine: Machine) -> None:
    host = machine.host()
    (machine.root / "vmlinuz").write_bytes(os.urandom(MIB))
    image = host.ensure(f"file://{machine.root}/vmlinuz", disk_format="aki")
    damage(image)
    assert "refetched" == repair(host.scrub())
    assert images_are_equal(image.path, machine.root / "vmlinuz")


def test_a_source_that_has_another_version_by_now_changes_nothing(machine: Machine, image: BaseImage) -> None:
    wrong = damage(image)
    machine.raw_image(message="another")

    report = machine.host().scrub()

    assert "refetch-failed" == repair(report)
    assert "expected sha256:" in (one(report).repair or one(report)).detail
    assert_left(machine, image, wrong)


def test_a_source_that_tells_of_another_version_is_not_asked_for_it(machine: Machine, image: BaseImage) -> None:
    wrong = damage(image)
    machine.raw_image(size=32 * MIB)
    assert "source-changed" == repair(machine.host().scrub())
    assert_left(machine, image, wrong)


def test_a_source_that_is_silent_changes_nothing(machine: Machine, image: BaseImage) -> None:
    wrong = damage(image)
    (machine.root / "image.raw").unlink()
    assert "refetch-failed" == repair(machine.host().scrub())
    assert_left(machine, image, wrong)


def test_a_source_that_asks_for_no_copies_is_not_asked_again(machine: Machine) -> None:
    host = machine.host()
    content = os.urandom(MIB)
    with serving({"/image.raw": Served(content)}) as server:
        image = host.ensure(server.url("/image.raw"))
        wrong = damage(image)
        server.serve("/image.raw", Served(content, headers={"Cache-Control": "no-store"}))
        assert "not-kept" == repair(host.scrub())
    assert wrong == image.path.read_bytes()


def test_a_scheme_that_nobody_serves_any_more_changes_nothing(machine: Machine, image: BaseImage) -> None:
    wrong = damage(image)

    class Nobody:
        """A table of sources that has none."""

        def __contains__(self, scheme: object) -> bool:
            return True

        def __getitem__(self, scheme: str) -> object:
            raise UnknownScheme(f"nobody serves {scheme}")

    host = Host.open(machine.config, sources=Nobody())  # type: ignore[arg-type]
    assert "refetch-failed" == repair(host.scrub())
    assert_left(machine, image, wrong)


def test_an_unrecorded_image_that_cannot_be_read_came_from_nowhere_known(machine: Machine, image: BaseImage) -> None:
    wrong = damage(image)
    host = machine.host()
    host.scrub(refetch=False)
    os.removexattr(image.path, "user.underlay")
    report = host.scrub()
    # What it should be nothing tells any more, and it can be read.
    assert ("readable", 0) == (one(report).outcome, report.exit_code)
    assert wrong == image.path.read_bytes()


def assert_left(machine: Machine, image: BaseImage, content: bytes) -> None:
    """The damaged image is where it was, as it was, and is not served."""
    assert content == image.path.read_bytes()
    with pytest.raises(ImageDamaged):
        machine.host().find(image.name)


def test_what_is_damaged_already_is_tried_again_with_every_scrub(machine: Machine, image: BaseImage) -> None:
    damage(image)
    os.rename(machine.root / "image.raw", machine.root / "away")
    host, heard = machine.host(), Heard()
    found_at = [one(host.scrub()).outcome and host.look(image.name)[0].damage for _ in range(2)]
    assert found_at[0] == found_at[1] is not None
    os.rename(machine.root / "away", machine.root / "image.raw")
    report = Host.open(machine.config, observer=heard).scrub()
    assert "refetched" == repair(report)
    assert "suspect" not in heard.codes  # one reading keeps it where two have put it


# --------------------------------------------------------------------------------------------------- who needs it, and who goes


def test_what_nobody_needs_goes_with_the_next_prune_however_young_it_is(machine: Machine, image: BaseImage) -> None:
    host = machine.host()
    damage(image)
    host.scrub(refetch=False)

    [verdict] = host.explain(image.name)
    assert (True, ["damaged"]) == (verdict.removes, [reason.code for reason in verdict.reasons])
    report = host.apply(host.plan_prune(instances=()))

    assert [image.path] == list(report.removed)
    assert [] == os.listdir(machine.base / ".underlay" / "quarantine")
    assert [] == os.listdir(machine.base / ".underlay" / "scrubs")


def test_what_a_disk_stands_on_stays_and_goes_after_it(machine: Machine, image: BaseImage) -> None:
    host = machine.host()
    host.create_disk("web-1", image)
    damage(image)
    host.scrub(refetch=False)

    assert [] == host.apply(host.plan_prune(instances=())).removed
    [verdict] = host.explain(image.name)
    assert (False, None) == (verdict.removes, verdict.goes_at)
    assert {"backing-file", "damaged"} == {reason.code for reason in verdict.reasons}

    host.remove_disk("web-1")
    assert [image.path] == list(host.apply(host.plan_prune(instances=())).removed)


def test_where_nothing_is_removed_the_damaged_stay_too_until_they_are_asked_to_go(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, options="force_raw_images = false\nremove_unused_base_images = false")
    host = machine.host()
    image = host.ensure(machine.raw_image())
    damage(image)
    host.scrub(refetch=False)
    assert [] == host.apply(host.plan_prune(instances=())).removed
    plan = host.plan_evict(image.name, instances=())
    assert [image.path] == list(host.apply(plan).removed)


def test_a_check_tells_of_damage_and_when_content_was_looked_at(machine: Machine, image: BaseImage) -> None:
    def told(code: str) -> list[str]:
        return [one["detail"] for one in machine.call("check", "--json").json["findings"] if one["code"] == code]

    assert ["what was looked at longest ago was 0 s ago"] == told("scrubs")
    damage(image)
    machine.host().scrub(refetch=False)
    assert 1 == len(told("image-damaged"))


# ------------------------------------------------------------------------------------------------------------ what is asked for


def test_images_are_named_by_name_ref_and_path(machine: Machine, image: BaseImage) -> None:
    host = machine.host()
    other = host.ensure(machine.raw_image("other.raw", message="another"))
    for text in (image.name, image.name[:8], image.ref or "", str(image.path)):
        assert [image.name] == [one.subject.name for one in host.scrub([text]).images]
    assert {image.name, other.name} == {one.subject.name for one in host.scrub([image.name, other.name, image.name]).images}


def test_a_cache_alone_may_be_scrubbed(machine: Machine, image: BaseImage) -> None:
    host = machine.host()
    master = host.ensure(image.ref or "", cache="masters")
    assert [master.path] == [one.subject.path for one in host.scrub(cache="masters").images]
    assert 2 == len(host.scrub().images)


def test_what_was_looked_at_lately_may_be_left_out(machine: Machine, image: BaseImage) -> None:
    host = machine.host()
    report = host.scrub(older_than=3600)
    assert ([], ["read-recently"]) == (list(report.images), [verdict.reason.code for verdict in report.left])
    assert ["read-recently"] == [verdict.reason.code for verdict in host.plan_scrub(older_than=3600)]
    assert ["due"] == [verdict.reason.code for verdict in host.plan_scrub()]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"images": ["nothing-of-the-kind"]}, NotCached),
        ({"images": ["file:relative"]}, InvalidRef),
        ({"images": ["../etc/passwd"]}, NotCached),
        ({"images": ["a\0b/c"]}, NotCached),
        ({"cache": "none"}, UnknownCache),
        ({"rate": 0}, InvalidSize),
        ({"rate": -1}, InvalidSize),
        ({"rate": "100"}, InvalidSize),
        ({"seconds": 0}, InvalidSize),
        ({"seconds": -1}, InvalidSize),
        ({"seconds": float("nan")}, InvalidSize),
        ({"seconds": float("inf")}, InvalidSize),
        ({"older_than": -1}, InvalidSize),
        ({"older_than": float("nan")}, InvalidSize),
    ],
)
def test_what_cannot_be_meant_is_refused(
    machine: Machine, image: BaseImage, arguments: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        machine.host().scrub(**arguments)  # type: ignore[arg-type]


def test_a_plan_changes_nothing(machine: Machine, image: BaseImage) -> None:
    damage(image)
    machine.host().plan_scrub()
    assert not (machine.base / ".underlay" / "scrubs").exists()
    assert machine.host().find(image.name)


def test_what_no_inspection_would_pass_can_be_named_all_the_same(machine: Machine, image: BaseImage) -> None:
    os.truncate(image.path, 100)
    assert "refetched" == repair(machine.host().scrub([image.name]))
    assert images_are_equal(image.path, machine.root / "image.raw")


# ------------------------------------------------------------------------------------------------------------------ all at once


@contextmanager
def meanwhile(*works: object) -> Iterator[list[BaseException]]:
    """Do these again and again, until the context ends."""
    over, failed = threading.Event(), list[BaseException]()

    def again(work: object) -> None:
        try:
            while not over.is_set():
                work()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - told at the end
            failed.append(error)

    threads = [threading.Thread(target=again, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_fetches_deliveries_and_prunes_go_on_while_images_break_and_are_repaired(machine: Machine) -> None:
    """Nobody is ever given bytes that are damaged and known to be; each round ends with a sound image."""
    host, ref = machine.host(), machine.raw_image(size=2 * MIB)
    good = (machine.root / "image.raw").read_bytes()
    image, master = host.ensure(ref), host.ensure(ref, cache="masters")
    known = threading.Event()

    def deliver() -> None:
        was_known = known.is_set()
        with suppress(UnsafeImage):  # while we write into it, its time of modification is another
            target = host.deliver(ref, machine.root / "delivered").path
            content = target.read_bytes()
            assert content == good or not (was_known and known.is_set())

    def prune() -> None:
        assert [] == [one for one in host.apply(host.plan_prune(instances=())).problems if one.code != "no-inventory"]

    with meanwhile(deliver, prune) as failed:
        for _ in range(2):
            damage(image)
            damage(master)
            report = host.scrub()
            assert {"damaged", "changed"} >= {one.outcome for one in report.images}
            known.set()
            assert good == host.ensure(ref).path.read_bytes()
            assert good == host.ensure(ref, cache="masters").path.read_bytes()
            known.clear()
    assert [] == failed


def test_the_repair_of_an_image_that_nobody_needs_is_no_use_of_it(machine: Machine, image: BaseImage) -> None:
    damage(image)
    images.mark_used(machine.host().config.caches["base"], image.name, at_ns=AGES_AGO)

    assert "refetched" == repair(machine.host().scrub(instances=()))

    [found] = machine.host().find(image.name)
    assert AGES_AGO == found.last_used.timestamp() * 10**9


@pytest.mark.component("qemu-img", "qemu-io")
@pytest.mark.component("ext4", "xfs", "btrfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_overlays_read_the_right_bytes_after_the_repair(mounted: object, kind: str) -> None:
    root = mounted(kind) / "host"  # type: ignore[operator]
    root.mkdir()
    machine = Machine.make(root)
    host = machine.host()
    image = host.ensure(machine.raw_image())
    disk = host.create_disk("web-1", image)
    good = image.path.read_bytes()[:MIB]
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 8M 64k", os.fspath(disk.path)]
    subprocess.run(write, check=True, capture_output=True)
    damage(image)
    assert good != seen_by_the_guest(disk.path)

    assert "refetched" == repair(host.scrub())

    assert good == seen_by_the_guest(disk.path)
    check = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", disk.path], check=False)
    assert 0 == check.returncode


def seen_by_the_guest(disk: Path) -> bytes:
    """The first bytes of a disk, through its chain."""
    raw = disk.with_suffix(".seen")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw], check=True)
    content = raw.read_bytes()[:MIB]
    raw.unlink()
    return content
