"""What is made once: by one of many threads, in each process anew, and for as long as it holds."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from underlay.once import Once, file_stamp


class Made:
    """Makes values, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.barrier = threading.Event()

    def __call__(self) -> object:
        self.count += 1
        self.barrier.wait(0.05)  # time for others to come in between
        return object()


def test_of_many_threads_one_makes_the_value() -> None:
    once, make = Once[object](), Made()
    with ThreadPoolExecutor(8) as pool:
        values = set(pool.map(lambda _: once.get("key", make), range(40)))
    assert (1, 1) == (make.count, len(values))


def test_each_key_has_a_value_of_its_own() -> None:
    once, make = Once[object](), Made()
    assert once.get("one", make) is not once.get("two", make)


def test_what_cannot_be_made_is_tried_again() -> None:
    once = Once[int]()
    with pytest.raises(ZeroDivisionError):
        once.get("key", lambda: 1 // 0)
    assert 7 == once.get("key", lambda: 7)


def test_what_does_not_hold_any_more_is_made_again() -> None:
    once, make = Once[object](), Made()
    first = once.get("key", make)
    assert first is once.get("key", make, holds=lambda one: one is first)
    assert first is not once.get("key", make, holds=lambda _: False)


def test_what_is_dropped_is_made_again_unless_another_took_its_place() -> None:
    once = Once[object]()
    first = once.get("key", object)
    once.drop("key", first)
    second = once.get("key", object)
    once.drop("key", first)
    assert (False, True) == (first is second, once.get("key", object) is second)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_although_another_thread_was_at_it() -> None:
    once = Once[int]()
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> int:
        begun.set()
        go_on.wait(30)
        return os.getpid()

    thread = threading.Thread(target=lambda: once.get("key", slowly))
    thread.start()
    begun.wait(30)
    pid = os.fork()  # while the other thread holds the lock
    if pid == 0:
        os._exit(0 if once.get("key", os.getpid) == os.getpid() else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    go_on.set()
    thread.join()
    assert (0, os.getpid()) == (status, once.get("key", os.getpid))


def test_a_stamp_changes_with_any_of_the_files(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    stamps = [file_stamp(files)]
    for file, content in ((files[0], "one"), (files[1], "one"), (files[1], "other")):
        file.write_text(content)
        stamps.append(file_stamp(files))
    (tmp_path / "new").write_text("other")
    (tmp_path / "new").replace(files[1])
    stamps.append(file_stamp(files))
    files[0].unlink()
    stamps.append(file_stamp(files))
    assert 6 == len(set(stamps))
    assert stamps[-1] == file_stamp(files)
