"""Nova's ``disk.info``: what it records is believed, and what Nova wrote there stays."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from storing import MIB
from underlay import diskinfo
from underlay.errors import DiskUnrecorded


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "instance"
    path.mkdir()
    return path


def _content(directory: Path) -> object:
    return json.loads((directory / "disk.info").read_bytes())


def test_a_directory_without_a_record_records_nothing(directory: Path) -> None:
    assert diskinfo.recorded_format(directory / "disk") is None
    diskinfo.forget(directory / "disk")
    assert [] == os.listdir(directory)


def test_a_format_is_recorded_under_the_disks_path_as_nova_does(directory: Path) -> None:
    diskinfo.record(directory / "disk", "raw")
    diskinfo.record(directory / "disk.local", "qcow2")
    assert {f"{directory}/disk": "raw", f"{directory}/disk.local": "qcow2"} == _content(directory)
    assert ("raw", "qcow2") == tuple(diskinfo.recorded_format(directory / name) for name in ("disk", "disk.local"))
    assert ["disk.info"] == os.listdir(directory)


def test_a_format_is_corrected(directory: Path) -> None:
    for disk_format in ("raw", "qcow2"):
        diskinfo.record(directory / "disk", disk_format)
    assert "qcow2" == diskinfo.recorded_format(directory / "disk")


def test_the_same_format_is_not_written_again(directory: Path) -> None:
    diskinfo.record(directory / "disk", "raw")
    inode = (directory / "disk.info").stat().st_ino
    diskinfo.record(directory / "disk", "raw")
    assert inode == (directory / "disk.info").stat().st_ino


def test_what_nova_recorded_stays(directory: Path) -> None:
    nova = {f"{directory}/disk.eph0": "qcow2", "/other/instance/disk": "raw"}
    (directory / "disk.info").write_text(json.dumps(nova))
    diskinfo.record(directory / "disk", "raw")
    assert nova | {f"{directory}/disk": "raw"} == _content(directory)
    diskinfo.forget(directory / "disk")
    assert nova == _content(directory)


def test_the_file_goes_with_its_last_disk(directory: Path) -> None:
    for name in ("disk", "disk.local"):
        diskinfo.record(directory / name, "raw")
    diskinfo.forget(directory / "disk")
    assert {f"{directory}/disk.local": "raw"} == _content(directory)
    diskinfo.forget(directory / "disk.local")
    diskinfo.forget(directory / "disk.local")
    assert [] == os.listdir(directory)


@pytest.mark.parametrize("content", [b"", b"\n", b" \n"])
def test_a_file_that_nova_has_only_opened_records_nothing(directory: Path, content: bytes) -> None:
    (directory / "disk.info").write_bytes(content)
    assert diskinfo.recorded_format(directory / "disk") is None
    diskinfo.record(directory / "disk", "raw")
    assert {f"{directory}/disk": "raw"} == _content(directory)


@pytest.mark.parametrize("content", [b"garbage", b"[]", b"null", b'{"a": 1}', b'{"a": null}', b"{", b"\xff", b'{"a": "raw"} x'])
def test_a_record_that_cannot_be_read_is_an_error_and_is_left_alone(directory: Path, content: bytes) -> None:
    (directory / "disk.info").write_bytes(content)
    calls: list[Callable[[], object]] = [
        lambda: diskinfo.recorded_format(directory / "disk"),
        lambda: diskinfo.record(directory / "disk", "raw"),
        lambda: diskinfo.forget(directory / "disk"),
    ]
    for call in calls:
        with pytest.raises(DiskUnrecorded, match=r"disk\.info"):
            call()
    assert content == (directory / "disk.info").read_bytes()


def test_what_a_crash_of_either_left_is_replaced(directory: Path) -> None:
    (directory / "disk.info.tmp").write_bytes(b'{"half": "a rec')
    diskinfo.record(directory / "disk", "raw")
    assert ["disk.info"] == os.listdir(directory)
    assert {f"{directory}/disk": "raw"} == _content(directory)


@pytest.mark.component("root")
@pytest.mark.usefixtures("umask_077")
def test_the_record_is_novas_to_read(directory: Path) -> None:
    os.chown(directory, 1234, 5678)
    diskinfo.record(directory / "disk", "raw")
    status = (directory / "disk.info").stat()
    assert (1234, 5678, 0o644) == (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def record_in_a_child(directory: str) -> None:
    diskinfo.record(Path(directory) / "disk", "raw")
    tell("recorded")


@pytest.mark.component("root")
def test_another_user_records_the_disks_of_its_own_directory(open_directory: Path) -> None:
    os.chown(open_directory, NOBODY, NOBODY)
    with start(record_in_a_child, open_directory, user=NOBODY, umask=0o077) as child:
        assert "recorded" == child.hear()
    assert {f"{open_directory}/disk": "raw"} == _content(open_directory)


@pytest.mark.component("root", "tmpfs")
def test_a_full_file_system_keeps_the_old_record_and_nothing_else(mounted: Callable[..., Path]) -> None:
    directory = mounted("tmpfs", MIB)
    diskinfo.record(directory / "disk", "raw")
    with pytest.raises(OSError, match="No space left"):
        (directory / "ballast").write_bytes(bytes(2 * MIB))
    with pytest.raises(OSError, match="No space left"):
        diskinfo.record(directory / "disk.local", "raw")
    assert {f"{directory}/disk": "raw"} == _content(directory)
    assert ["ballast", "disk.info"] == sorted(os.listdir(directory))


@pytest.mark.component("strace")
def test_a_record_is_durable_before_it_replaces_the_old_one(tmp_path: Path, directory: Path) -> None:
    diskinfo.record(directory / "disk.local", "raw")
    log = tmp_path / "log"
    strace = ["strace", "-qq", "-y", "-o", os.fspath(log), "-e", "trace=fsync,rename"]
    with start(record_in_a_child, directory, wrapper=strace) as child:
        assert "recorded" == child.hear()
        child.end()
    calls = [line for line in log.read_text().splitlines() if os.fspath(directory) in line]
    assert ["fsync", "rename", "fsync"] == [call.partition("(")[0] for call in calls]
    assert f"<{directory}/" in calls[0]
    assert calls[1].endswith('disk.info") = 0')
    assert f"<{directory}>" in calls[2]
