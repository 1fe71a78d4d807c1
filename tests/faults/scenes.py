"""What the fault tests play through: a job in a directory of its own, done by a process whose system calls go wrong.

A `Scene` sets the same paths up again for each try, so that what a clean run leaves can be compared with what is there after a
fault and the next call.
"""

import hashlib
import json
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from job import INSTANCE

from underlay.host import Host
from underlay.model import BaseImage
from underlay.store import Store, images, staging as stagings
from underlay.stream import stored_digest

MIB = 1 << 20
CONTENT = random.Random("underlay").randbytes(MIB)
OLD_CONTENT = b"an older version of it" * 1000
_JOB = Path(__file__).with_name("job.py")
_PATIENCE = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        failed: whether a system call was made to fail. killed: whether the job, or a tool that it ran, was killed.
        answer: what the job said; empty when it was killed itself.
    """

    failed: bool
    killed: bool
    answer: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Scene:
    """One job, in one directory.

    Attributes:
        kind: of the cache. laid_out: whether the cache was used before.
        image: ``raw`` or ``qcow2``, as its source serves it. old: whether another version of it is in the cache.
        backend: of the disk that is made from the image; None when the image is what is wanted. outside: where it goes.
    """

    root: Path
    jobs: "Jobs"
    kind: str = "base"
    laid_out: bool = True
    image: str = "raw"
    old: bool = False
    backend: str | None = None
    outside: bool = False

    @property
    def ref(self) -> str:
        return f"file://{self.root}/source"

    @property
    def disk(self) -> Path:
        return self.root / "disk" if self.outside else self.root / "instances" / INSTANCE / "disk"

    @property
    def host(self) -> Host:
        return Host.open(self.root / "underlay.toml")

    @property
    def store(self) -> Store:
        return self.host.config.caches["one"]

    def set_up(self) -> None:
        """An empty directory, but for what there is before the job."""
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / "instances/_base").mkdir(parents=True)
        (self.root / "underlay.toml").write_text(
            f'[instances]\npath = "{self.root}/instances"\n'
            f'[caches.one]\nkind = "{self.kind}"\npath = "{self.root}/instances/_base"\nforce_raw_images = true\n'
            f'[sources.file]\nallowed_paths = ["{self.root}"]\n'
        )
        if self.old:
            (self.root / "source").write_bytes(OLD_CONTENT)
            self.host.ensure(self.ref)
        self._write_source()
        if self.laid_out:
            self.store.prepare()
        if self.backend is not None:
            self.host.ensure(self.ref)

    def _write_source(self) -> None:
        made = self.root.with_suffix(f".{self.image}")
        if not made.exists():
            raw = made.with_name("raw")
            raw.write_bytes(CONTENT)
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", self.image, raw, made], check=True)
        source = self.root / "source"
        source.unlink(missing_ok=True)
        shutil.copyfile(made, source)

    def run(self, *faults: str) -> Outcome:
        """Do the job in a process of its own; ``faults`` as strace's ``inject`` has them."""
        answer, log = self.root.with_suffix(".answer"), self.root.with_suffix(".log")
        log.write_text("")
        status = self.jobs.run([answer, self.root / "underlay.toml", *self._job()], faults=faults, log=log)
        report = log.read_text(errors="replace")
        failed, killed = "(INJECTED)" in report, "killed by SIGKILL" in report
        if status == -signal.SIGKILL and killed:
            return Outcome(failed, killed, {})
        assert 0 == status, faults
        return Outcome(failed, killed, json.loads(answer.read_text()))

    def _job(self) -> list[str]:
        if self.backend is None:
            return ["ensure", self.ref]
        return ["disk", self.backend, self.ref, os.fspath(self.disk)]

    def again(self) -> Path:
        """The same call once more, in this process."""
        if self.backend is None:
            return self.host.ensure(self.ref).path
        image = self.host.find(self.ref)[0]
        return self.host.create_disk(INSTANCE, image, backend=self.backend, path=self.disk if self.outside else None).path

    # ------------------------------------------------------------------------------------------------------------- checks

    def check_whole(self) -> None:
        """Whatever has an image's or a disk's name is one, with all that belongs to it."""
        found: list[BaseImage] = []
        if (self.root / "instances/_base/.underlay").exists():
            found, problems = images.images(self.store)
            assert [] == problems
        strangers = set(os.listdir(self.root / "instances/_base")) - {image.name for image in found} - {".underlay"}
        assert set() == strangers
        for image in found:
            assert_whole(image)
        if os.path.lexists(self.disk):
            self._check_disk()

    def _check_disk(self) -> None:
        disk = self.host.disk(INSTANCE, path=self.disk if self.outside else None)
        assert ("raw" if self.backend == "flat" else "qcow2") == disk.format
        assert MIB == disk.size
        assert disk in self.host.disks()  # recorded where a usage scan will find it
        assert CONTENT == guest_bytes(self.disk, disk.format)

    def tree(self) -> dict[str, str]:
        """Everything below the directory but lock files: what kind of file it is, its mode, and of images the content.

        The ballast is left out: it is no harm when there was no room for it.
        """
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.parent.name != "locks" and path.name != "ballast":
                name = os.fspath(path.relative_to(self.root))
                found[name] = stat.filemode(path.lstat().st_mode) + _content(path)
        return found

    def staged(self) -> list[str]:
        """What ingests have left."""
        return [ingest.directory.name for ingest, _ in stagings.ingests(self.store)]


def assert_whole(image: BaseImage) -> None:
    """The image is what its record says, byte by byte."""
    assert image.record is not None
    with image.path.open("rb") as file:
        assert image.record.stored == stored_digest(file.fileno())
    assert image.path.read_bytes() in (CONTENT, OLD_CONTENT)
    if image.record.as_served:
        assert f"sha256:{hashlib.sha256(image.path.read_bytes()).hexdigest()}" in image.record.digests


def guest_bytes(disk: Path, disk_format: str) -> bytes:
    """What a guest reads from a disk; the disk passes qemu-img's check."""
    if disk_format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", "-f", disk_format, disk], check=True)
    raw = disk.with_name(f"{disk.name}.raw")
    subprocess.run(["qemu-img", "convert", "-f", disk_format, "-O", "raw", disk, raw], check=True)
    content = raw.read_bytes()
    raw.unlink()
    return content


def _content(path: Path) -> str:
    is_volatile = path.suffix in (".json", ".info") or path.is_symlink() or not path.is_file()
    return "" if is_volatile else f" {path.stat().st_size}"


@dataclass(frozen=True, slots=True)
class Jobs:
    """The process that has jobs done, one at a time."""

    process: subprocess.Popen[bytes]

    def run(self, task: Sequence[str | Path], *, faults: Sequence[str], log: Path) -> int:
        """Have a job done, under strace when faults are wanted; its exit status, or less the signal that killed it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([os.fspath(part) for part in task]).encode() + b"\n")
        self.process.stdin.flush()
        pid = self._number()
        _wait_for(pid, "State:\tT")
        with ExitStack() as stack:
            if faults:
                stack.enter_context(subprocess.Popen(_strace(faults, log, pid), stderr=subprocess.DEVNULL))
                _wait_for(pid, "TracerPid:\t", but="TracerPid:\t0\n")
            os.kill(pid, signal.SIGCONT)
            return self._number()

    def _number(self) -> int:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _PATIENCE)
        assert ready
        return int(self.process.stdout.readline())


def _strace(faults: Sequence[str], log: Path, pid: int) -> list[str]:
    calls = ",".join(fault.partition(":")[0] for fault in faults)
    options = [option for fault in faults for option in ("-e", f"inject={fault}")]
    return ["strace", "-f", "-q", "-o", os.fspath(log), "-e", f"trace={calls}", *options, "-p", str(pid)]


@contextmanager
def jobs() -> Iterator[Jobs]:
    """A process that has jobs done, until the end of the context."""
    argv = [sys.executable, "-B", os.fspath(_JOB)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield Jobs(process)
        finally:
            process.kill()


def _wait_for(pid: int, text: str, *, but: str | None = None) -> None:
    """Until the process's status has one text and not the other."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text()
        if text in status and (but is None or but not in status):
            return
        time.sleep(0.001)
    raise AssertionError(f"process {pid}: {text!r} never came")
