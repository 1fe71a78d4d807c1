"""A cache directory as a whole: laid out once, refused when it is laid out differently, usable by its group."""

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from storing import laid_out, snapshot
from underlay.errors import CacheMissing, CacheNotWritable, LayoutDisagrees, UnderlayError, UnknownLayout
from underlay.naming import CacheKind
from underlay.store import Store

MODES = {
    ".underlay": 0o755,
    ".underlay/format": 0o644,
    ".underlay/ballast": 0o600,
    ".underlay/locks": 0o2775,
    ".underlay/used": 0o2775,
    ".underlay/leases": 0o2775,
    ".underlay/disks": 0o2775,
    ".underlay/instances": 0o2775,
    ".underlay/refs": 0o755,
    ".underlay/tmp": 0o700,
    ".underlay/trash": 0o700,
}


def _modes(root: Path) -> dict[str, int]:
    found = {os.fspath(path.relative_to(root)): path.stat().st_mode & 0o7777 for path in root.rglob("*")}
    return {name: mode for name, mode in found.items() if not name.startswith(".underlay/locks/")}


@pytest.mark.parametrize("kind", CacheKind)
@pytest.mark.usefixtures("umask_077")
def test_a_directory_is_laid_out_with_its_modes_whatever_the_umask(tmp_path: Path, kind: CacheKind) -> None:
    laid_out(tmp_path, kind=kind)
    assert MODES == _modes(tmp_path)
    assert {"layout": 1, "nova_locks": None} == json.loads((tmp_path / ".underlay/format").read_bytes())


@pytest.mark.component("root")
def test_what_root_lays_out_belongs_to_the_directorys_owner_and_group(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 5678)
    laid_out(tmp_path)
    assert {(1234, 5678)} == {(path.stat().st_uid, path.stat().st_gid) for path in (tmp_path, *tmp_path.rglob("*"))}


def test_a_directory_is_laid_out_once(tmp_path: Path) -> None:
    store = Store(root=tmp_path, kind=CacheKind.BASE)
    assert not store.check()
    assert [] == os.listdir(tmp_path)
    store.prepare()
    before = snapshot(tmp_path)
    assert store.check()
    store.prepare()
    assert before == snapshot(tmp_path)


def test_many_threads_lay_a_directory_out_together(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Store(root=tmp_path, kind=CacheKind.BASE).prepare(), range(32)))
    assert MODES == _modes(tmp_path)


@pytest.mark.component("root")
@pytest.mark.parametrize("made", [".underlay", ".underlay/locks", ".underlay/used", ".underlay/tmp"])
def test_what_a_crash_left_half_laid_out_is_completed(tmp_path: Path, made: str) -> None:
    # Killed after mkdir(2) under a strict umask, before the directory got its owner and its mode.
    os.chown(tmp_path, 1234, 5678)
    (tmp_path / ".underlay").mkdir(mode=0o700)
    (tmp_path / made).mkdir(mode=0o700, exist_ok=True)
    laid_out(tmp_path)
    assert MODES == _modes(tmp_path)
    assert (1234, 5678) == ((tmp_path / made).stat().st_uid, (tmp_path / made).stat().st_gid)


@pytest.mark.parametrize("layout", [0, 2, 1000, None, "1", True])
def test_an_unknown_layout_is_refused(tmp_path: Path, layout: object) -> None:
    store = laid_out(tmp_path)
    (tmp_path / ".underlay/format").write_text(json.dumps({"layout": layout, "nova_locks": None}))
    before = snapshot(tmp_path)
    for call in (store.check, store.prepare):
        with pytest.raises(UnknownLayout, match=str(tmp_path)):
            call()
    assert before == snapshot(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"null", b"{}", b'{"layout": [1]}', b"\xff\xfe", b'{"layout": 1'])
def test_a_layout_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    store = laid_out(tmp_path)
    (tmp_path / ".underlay/format").write_bytes(content)
    with pytest.raises(UnknownLayout):
        store.prepare()
    assert content == (tmp_path / ".underlay/format").read_bytes()


@pytest.mark.parametrize(
    ("recorded", "configured"),
    [(None, "locks"), ("locks", None), ("locks", "others")],
)
def test_a_directory_is_never_locked_in_two_ways(tmp_path: Path, recorded: str | None, configured: str | None) -> None:
    def locked_with(name: str | None) -> Store:
        return Store(root=tmp_path, kind=CacheKind.BASE, nova_locks=tmp_path / name if name else None)

    locked_with(recorded).prepare()
    locked_with(recorded).prepare()
    with pytest.raises(LayoutDisagrees) as caught:
        locked_with(configured).prepare()
    for name in (recorded, configured):
        assert str(tmp_path / name if name else None) in str(caught.value)


@pytest.mark.parametrize("kind", ["nothing", "file", "dangling symlink"])
def test_a_directory_that_is_not_there_is_missing(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "cache"
    if kind == "file":
        root.touch()
    if kind == "dangling symlink":
        root.symlink_to("nowhere")
    for call in (Store(root=root, kind=CacheKind.BASE).check, Store(root=root, kind=CacheKind.BASE).prepare):
        with pytest.raises(CacheMissing, match=str(root)):
            call()


def test_a_directory_may_be_named_by_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "cache").symlink_to("real")
    laid_out(tmp_path / "cache")
    assert (tmp_path / "real/.underlay/format").is_file()


@pytest.mark.component("root", "tmpfs")
def test_a_read_only_file_system_is_refused_until_it_is_laid_out(mounted: Callable[..., Path]) -> None:
    fresh, used = mounted("tmpfs", 1 << 20), mounted("tmpfs", 1 << 20)
    laid_out(used)
    for directory in (fresh, used):
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    with pytest.raises(CacheNotWritable) as caught:
        Store(root=fresh, kind=CacheKind.BASE).prepare()
    assert caught.value.hint is not None
    assert "read-write" in caught.value.hint
    Store(root=used, kind=CacheKind.BASE).prepare()


def prepare_and_say(root: str) -> None:
    try:
        Store(root=Path(root), kind=CacheKind.BASE).prepare()
    except UnderlayError as error:
        tell(f"{type(error).__name__}: {error}")
    else:
        tell("prepared")


@pytest.mark.component("root")
def test_a_directory_that_is_not_ours_to_write_is_refused(open_directory: Path) -> None:
    with start(prepare_and_say, open_directory, user=NOBODY) as other:
        answer = other.hear()
    assert answer.startswith("CacheNotWritable: ")
    assert str(open_directory) in answer
    assert [] == os.listdir(open_directory)


@pytest.mark.component("root")
def test_a_directory_that_we_may_not_enter_is_refused(tmp_path: Path) -> None:
    with start(prepare_and_say, tmp_path / "cache", user=NOBODY) as other:
        assert other.hear().startswith("CacheNotWritable: ")


@pytest.mark.component("root")
def test_another_user_accepts_what_root_laid_out(open_directory: Path) -> None:
    laid_out(open_directory)
    with start(prepare_and_say, open_directory, user=NOBODY) as other:
        assert "prepared" == other.hear()


@pytest.mark.component("root", "tmpfs")
def test_a_full_file_system_says_so_and_the_layout_is_completed_later(mounted: Callable[..., Path]) -> None:
    root = mounted("tmpfs", 1 << 20)
    with pytest.raises(OSError, match="No space left"):
        (root / "ballast").write_bytes(bytes(2 << 20))
    with pytest.raises(UnderlayError, match="no room"):
        Store(root=root, kind=CacheKind.BASE).prepare()
    (root / "ballast").unlink()
    laid_out(root)
    assert MODES == _modes(root)
