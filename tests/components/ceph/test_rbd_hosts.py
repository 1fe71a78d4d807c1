"""Several hosts, and several workers of one host, at one pool of a real Ceph: nobody undoes what another does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from ceph_stage import CONTENT, MIB, TIMEOUT, RbdStage, base_image, claim, located, nothing, of_disk, pool_of, spec_at, spec_of
from ceph_worker import Task, work

from underlay.disks.rbd import RbdBackend
from underlay.disks.rbd.cluster import Access, Cluster, connected
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.removing import remove_image
from underlay.disks.rbd.renaming import rename
from underlay.errors import BackendUnavailable, DiskExists, DiskInUse, ShrinkRefused

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python")]


def waiting(backend: RbdBackend, method: str, *arguments: Any, before: str) -> Task:
    return Task(backend, method, arguments, before=before, waits=True)


def test_a_disk_that_another_host_has_grown_is_not_cut(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))

    done = work(
        waiting(stage.backend_on("node1"), "resize", disk, 16 * MIB, before="_grow"),
        lambda: stage.backend_on("node2").resize(disk, 32 * MIB),
    )

    assert b"ShrinkRefused" in done.stderr, done.stderr.decode()
    assert 32 * MIB == stage.backend.describe(spec_at(disk)).size
    with pytest.raises(ShrinkRefused):
        stage.backend.resize(disk, 16 * MIB)


def test_two_hosts_may_ask_for_the_same_clone_at_once(stage: RbdStage) -> None:
    version = stage.cloneable(CONTENT)
    for _ in range(3):
        spec = spec_of(stage)
        with ThreadPoolExecutor() as threads:
            asked = [threads.submit(stage.backend_on(f"node{number}").clone, version, spec) for number in range(3)]
            one, *others = [answer.result() for answer in asked]
        assert [one, one] == others
        assert {spec.path.name} == of_disk(stage, spec)


def test_of_two_that_give_one_name_at_once_one_is_told_that_it_is_taken(stage: RbdStage) -> None:
    access = Access(user=None, conf=stage.ceph.conf, connect_timeout=TIMEOUT, operation_timeout=TIMEOUT, host="node1")
    with connected(access) as one, connected(access) as other, ThreadPoolExecutor() as threads:
        pools = [(cluster, cluster.pool(stage.pool)) for cluster in (one, other)]
        for _ in range(10):
            together, name = Barrier(2), uuid4().hex

            def given(cluster: Cluster, pool: Any, together: Barrier = together, name: str = name) -> bool:
                image = ImageName(cluster, pool, f"{name}-{cluster is one}")
                cluster.library.rbd.RBD().create(pool, image.name, MIB)
                together.wait()
                try:
                    rename(image, image.beside(name))
                except DiskExists:
                    remove_image(image)
                    return False
                return True

            assert [False, True] == sorted(threads.map(lambda at, give=given: give(*at), pools))
            remove_image(ImageName(one, pools[0][1], name))


def test_two_hosts_may_protect_the_same_snapshot_at_once(stage: RbdStage) -> None:
    version = stage.cloneable(CONTENT)
    name, specs = version.locations[1].split("/")[4], [spec_of(stage), spec_of(stage)]
    stage.ceph.rbd("snap", "unprotect", f"images/{name}@snap")
    old_kind = RbdStage(stage.ceph, stage.directory, clone_format="1")

    done = work(
        waiting(old_kind.backend_on("node1"), "clone", version, specs[0], before="protect"),
        lambda: old_kind.backend_on("node2").clone(version, specs[1]),
    )

    assert (0, b"") == (done.returncode, done.stderr), done.stderr.decode()
    assert [8 * MIB] * 2 == [stage.backend.describe(spec).size for spec in specs]


@pytest.mark.parametrize(("before", "told"), [("_grow", DiskInUse), ("making", None)])
def test_a_snapshot_from_which_another_host_clones_is_discarded_or_cloned(
    stage: RbdStage, before: str, told: type[Exception] | None
) -> None:
    disk, spec = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage)), spec_of(stage)
    location = stage.backend.snapshot(disk, f"kept-{disk.instance}")
    clone = waiting(stage.backend_on("node2"), "clone", located(stage.cloneable(b"x"), location), spec, before=before)

    if told is None:
        assert b"Unsupported" in work(clone, lambda: stage.backend.discard_snapshot(location)).stderr
        assert set() == of_disk(stage, spec)
        return

    def discard() -> None:
        with pytest.raises(told):
            stage.backend.discard_snapshot(location)

    assert 0 == work(clone, discard).returncode
    assert CONTENT == stage.read(stage.backend.describe(spec))[: len(CONTENT)]


def test_a_disk_that_another_host_makes_is_not_removed_before_it_is_there(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)

    done = work(
        waiting(stage.backend_on("node1"), "create", base, spec, before="rename"),
        lambda: stage.backend_on("node2").remove(nothing(spec)),
    )

    assert (0, b"") == (done.returncode, done.stderr), done.stderr.decode()
    assert CONTENT == stage.read(stage.backend.describe(spec))[: len(CONTENT)]


def test_a_disk_that_another_host_removes_is_made_when_it_is_gone(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)
    disk = stage.backend.create(base, spec)

    def create() -> None:
        with pytest.raises(BackendUnavailable, match="being removed by node1"):
            stage.backend_on("node2").create(base, spec)

    assert 0 == work(waiting(stage.backend_on("node1"), "remove", disk, before="remove_image"), create).returncode
    assert disk == stage.backend_on("node2").create(base, spec)


def test_a_name_that_another_host_took_meanwhile_is_not_taken_away(stage: RbdStage, tmp_path: Path) -> None:
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, spec.path.name, MIB)
        with rbd.Image(pool, spec.path.name) as image:
            header = f"rbd_header.{image.id()}"
        pool.remove_object(header)

    done = work(
        waiting(stage.backend_on("node1"), "create", base, spec, before="_drop"),
        lambda: stage.backend_on("node2").create(base, spec),
    )

    assert (0, b"") == (done.returncode, done.stderr), done.stderr.decode()
    assert CONTENT == stage.read(stage.backend.describe(spec))[: len(CONTENT)]
    assert {spec.path.name} == of_disk(stage, spec)


def test_work_on_this_host_that_is_under_way_is_left_alone(stage: RbdStage, tmp_path: Path) -> None:
    """Two configurations of one host may have their locks in different caches."""
    base, spec = base_image(tmp_path, CONTENT), spec_of(stage)

    done = work(waiting(stage.backend, "create", base, spec, before="set_record"), lambda: stage.backend.create(base, spec))

    assert (0, b"") == (done.returncode, done.stderr), done.stderr.decode()
    assert {spec.path.name} == of_disk(stage, spec)


def test_two_snapshots_may_be_made_under_one_name_and_one_is(stage: RbdStage) -> None:
    version = stage.cloneable(CONTENT)
    one, other = (stage.backend.clone(version, spec_of(stage)) for _ in range(2))
    name = f"kept-{one.instance}"

    done = work(
        waiting(stage.backend, "snapshot", one, name, before="_make_lasting"), lambda: stage.backend.snapshot(other, name)
    )

    assert b"DiskExists" in done.stderr, done.stderr.decode()
    assert {name, one.path.name} == of_disk(stage, spec_at(one))
    for disk in (one, other):
        stage.backend.remove(disk)


def test_a_snapshot_called_as_a_disk_that_is_being_made_takes_nothing_from_it(stage: RbdStage, tmp_path: Path) -> None:
    disk, spec = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage)), spec_of(stage)
    task = waiting(stage.backend, "create", base_image(tmp_path, CONTENT), spec, before="rename")

    done = work(task, lambda: stage.backend.snapshot(disk, spec.path.name))

    assert b"DiskExists" in done.stderr, done.stderr.decode()
    assert {spec.path.name} == of_disk(stage, spec)


def test_two_hosts_that_change_one_disk_have_a_claim_each(stage: RbdStage) -> None:
    disk = stage.backend.clone(stage.cloneable(CONTENT), spec_of(stage))
    seen: list[set[str]] = []

    def flatten() -> None:
        stage.backend_on("node2").flatten(disk)
        seen.append(of_disk(stage, spec_at(disk)))

    work(waiting(stage.backend_on("node1"), "resize", disk, 16 * MIB, before="_grow"), flatten)

    (during,) = seen
    assert (2, {disk.path.name}) == (len(during), of_disk(stage, spec_at(disk)))


def test_what_another_host_still_works_on_is_left_alone_however_long_it_takes(stage: RbdStage, tmp_path: Path) -> None:
    base, spec, token = base_image(tmp_path, CONTENT), spec_of(stage), token_hex(8)
    temporary = f".{spec.path.name}.{token}"
    with pool_of(stage.ceph, stage.pool) as (rbd, pool):
        rbd.RBD().create(pool, temporary, MIB)
        with rbd.Image(pool, temporary) as image:
            address = next(iter(image.watchers_list()))["addr"]
            claim(pool, f"{spec.path.name}/{token}", host="another", makes=spec.path.name, made_at=1.0, address=address)
            stage.backend.create(base, spec)
            assert temporary in of_disk(stage, spec)

    stage.backend.create(base, spec)

    assert {spec.path.name} == of_disk(stage, spec)
