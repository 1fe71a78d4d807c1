"""The Ceph of the tests here, started once."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ceph_cluster import Ceph, ceph as brought_up
from ceph_stage import RbdStage


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """A Ceph with the pools rbd, images and other."""
    directory = Path(tempfile.mkdtemp(prefix="ul-"))
    try:
        with brought_up(directory) as running:
            for pool in ("images", "other"):
                running.make_pool(pool)
            yield running
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def stage(ceph: Ceph, tmp_path: Path) -> RbdStage:
    return RbdStage(ceph, tmp_path)
