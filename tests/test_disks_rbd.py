"""The rbd backend without a Ceph: names, locations, options, and what is told when its libraries are not there."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from underlay.config import parse_config
from underlay.disks.rbd import RbdBackend
from underlay.disks.rbd.content import pieces
from underlay.disks.rbd.places import Location, image_name, parse_location
from underlay.disks.rbd.underway import is_under_way, under_way
from underlay.errors import ConfigError
from underlay.registry import open_backend
from underlay.waiting import Pulse

NAMES = st.text(alphabet="ab1._+-", min_size=1, max_size=6)
PARTS = st.text(min_size=1).filter(lambda text: text.isprintable() and not {"/", "@"} & set(text))


def test_an_image_is_called_as_nova_calls_it() -> None:
    assert Path("/dev/rbd/vms/3f9c_disk.local") == RbdBackend(pool="vms").place("3f9c", "disk.local")


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_no_two_disks_meet_in_one_image(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (one == other) == (image_name(*one) == image_name(*other))


@given(st.builds(Location, fsid=PARTS, pool=PARTS, image=PARTS, snapshot=PARTS))
def test_a_location_is_read_as_it_is_written(location: Location) -> None:
    assert location == parse_location(location.url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "rbd://",
        "rbd://a/b/c",
        "rbd://a/b/c/d/e",
        "rbd://a//c/d",
        "rbd://a/b/c%2Fd/e",
        "rbd://a/b/c@d/e",
        "rbd://a/b/c%0a/e",
        "https://example.org/a/b/c/d",
        "file:///a/b/c/d",
    ],
)
def test_what_is_no_snapshot_of_an_image_is_no_location(url: str) -> None:
    assert parse_location(url) is None


def configured(options: str) -> RbdBackend:
    text = f'[caches.one]\nkind = "base"\npath = "/cache"\n[disks]\n{options}'
    config = parse_config(text, origin=Path("test"))
    backend = open_backend("rbd", config.disks)
    assert isinstance(backend, RbdBackend)
    return backend


def test_the_options_reach_the_backend() -> None:
    backend = configured(
        'hw_disk_discard = "unmap"\ndisk_cachemodes = ["network=writeback", "file=none"]\n'
        '[disks.rbd]\npool = "vms"\ndata_pool = "ec"\nsnapshot_pool = "images"\nuser = "nova"\n'
        'ceph_conf = "/etc/ceph/two.conf"\n'
        'secret_uuid = "457EB676-33DA-42EC-9A8C-9293D545C337"\nconnect_timeout = "2s"\noperation_timeout = "1min"\n'
    )

    expected = RbdBackend(
        pool="vms",
        data_pool="ec",
        snapshot_pool="images",
        user="nova",
        ceph_conf=Path("/etc/ceph/two.conf"),
        secret="457eb676-33da-42ec-9a8c-9293d545c337",
        connect_timeout=2.0,
        operation_timeout=60.0,
        cache_mode="writeback",
        discard="unmap",
    )
    assert expected == backend


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ('pool = "a/b"', "no name in a Ceph"),
        ('user = "client.nova"', "has its type in it"),
        ('ceph_conf = "ceph.conf"', "absolute path"),
        ('secret_uuid = "secret"', "no UUID"),
        ("connect_timeout = 5", "unit"),
        ('operation_timeout = "0s"', "no time at all"),
        ('poool = "rbd"', "poool"),
    ],
)
def test_a_wrong_option_is_told(option: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        configured(f"[disks.rbd]\n{option}\n")


def test_the_packages_are_named_where_the_libraries_are_missing() -> None:
    program = """
import sys
from pathlib import Path
sys.modules["rados"] = None
from underlay import DiskSpec
from underlay.disks.rbd import RbdBackend
from underlay.disks.rbd.content import pieces
from underlay.errors import ExtraMissing
try:
    RbdBackend().describe(DiskSpec(instance="a", name="disk", path=Path("/dev/rbd/rbd/a_disk")))
except ExtraMissing as error:
    print(error, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "python3-rados python3-rbd" in done.stdout


def test_neither_making_the_backend_nor_asking_what_it_is_loads_a_library() -> None:
    program = """
import sys
from underlay.disks.rbd import RbdBackend
from underlay.disks.rbd.content import pieces
assert RbdBackend().place("a", "disk") and RbdBackend().traits.clones
assert not {"rados", "rbd"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_only_reads_zeros_gets_on(tmp_path: Path) -> None:
    source, pulse = tmp_path / "source", Pulse(at=0.0)
    source.write_bytes(bytes(8 << 20))

    with source.open("rb") as file:
        assert [] == list(pieces(file.fileno(), 8 << 20, pulse))

    assert pulse.at > 0.0


def test_work_is_under_way_until_it_ends_however_it_ends() -> None:
    with under_way() as token:
        assert is_under_way(token)
    assert not is_under_way(token)

    program = """
import os, signal
from underlay.disks.rbd.underway import under_way
with under_way() as token:
    print(token, flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        token = process.stdout.readline().strip()
        assert is_under_way(token)
        process.kill()
        process.wait()
        assert not is_under_way(token)
