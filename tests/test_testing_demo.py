"""The main job, run as a person runs it: the commands and their order, and a guest that really boots."""

import subprocess
import sys
from hashlib import sha512
from pathlib import Path

import pytest

from underlay.testing.bootimage import SMALLEST, write_raw
from underlay.testing.httpserver import Served, serving

pytestmark = pytest.mark.component("qemu-img", "qemu-system-x86_64")


def demo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "underlay", "demo", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_the_demo_fetches_makes_three_disks_and_boots_one() -> None:
    ended = demo()
    assert 0 == ended.returncode, ended.stderr
    steps = [line.split()[2] for line in ended.stdout.splitlines() if line.startswith("$ underlay")]
    assert ["fetch", "disk", "disk", "disk", "list", "show", "disk", "du"] == steps
    assert any(" --checksum http://" in line and line.endswith("/SHA256SUMS") for line in ended.stdout.splitlines())
    assert "used by 3 disks" in ended.stdout
    assert "the guest says: UNDERLAY BOOTED from a disk that underlay made" in ended.stdout


def test_the_demo_takes_another_image_and_the_digest_that_is_published_beside_it(tmp_path: Path) -> None:
    image = tmp_path / "other.img"
    write_raw(image, size=SMALLEST, message="other login:")
    digest = sha512(image.read_bytes()).hexdigest()
    with serving({"/other.img": Served(image), "/SHA512SUMS": Served(f"{digest} *other.img\n".encode())}) as server:
        ended = demo(server.url("/other.img"))
    assert 0 == ended.returncode, ended.stderr
    assert f"--checksum {server.url('/SHA512SUMS')}" in ended.stdout
    assert f"lists sha512:{digest}, unsigned" in ended.stderr
    assert "the guest says: UNDERLAY BOOTED other login:" in ended.stdout


def test_the_demo_ends_with_the_failing_step_when_the_published_digest_is_another() -> None:
    with serving({"/other.img": Served(bytes(SMALLEST)), "/SHA256SUMS": Served(f"{'0' * 64}  other.img\n".encode())}) as server:
        ended = demo(server.url("/other.img"))
    assert 71 == ended.returncode
    assert "expected sha256:0000" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "$ underlay disk" not in ended.stdout
