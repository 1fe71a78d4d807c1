"""The converter against layouts that no tool writes, with qemu-img as the judge, whole and while they arrive."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from qcow2_layouts import Layout, build
from qcow2_strategies import layouts
from underlay.errors import UnsafeImage
from underlay.formats import qcow2
from underlay.formats.qcow2.convert import convert, converting
from underlay.stream import BLOCK_BYTES, SparseWriter

pytestmark = pytest.mark.component("qemu-img")


@settings(max_examples=80)
@given(layouts())
def test_a_layout_that_no_tool_writes_becomes_what_qemu_img_makes_of_it(layout: Layout) -> None:
    image, disk = build(layout)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "image").write_bytes(image)
        argv: list[str | Path] = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", directory / "image", directory / "judged"]
        subprocess.run(argv, check=True, capture_output=True)
        with (directory / "image").open("rb") as source, (directory / "raw").open("xb") as target:
            convert(source.fileno(), target.fileno(), qcow2.parse_header(image[: qcow2.HEADER_BYTES]))

        assert disk == (directory / "judged").read_bytes()
        assert disk == (directory / "raw").read_bytes()


@settings(max_examples=150)
@given(layouts(), st.lists(st.sampled_from([1, 3, 8]), min_size=1, max_size=4))
def test_while_it_arrives_what_is_settled_is_final(layout: Layout, blocks: Sequence[int]) -> None:
    image, disk = build(layout)
    header = qcow2.parse_header(image[: qcow2.HEADER_BYTES])
    with tempfile.TemporaryFile() as spool, tempfile.TemporaryFile() as target:
        writer = SparseWriter(spool.fileno())
        with converting(spool.fileno(), target.fileno(), header) as conversion:
            settled = step = 0
            while writer.size < len(image):
                writer.feed(memoryview(image)[writer.size : writer.size + blocks[step % len(blocks)] * BLOCK_BYTES])
                step += 1
                for settled in conversion.advance(writer.size):
                    prefix = os.pread(target.fileno(), settled, 0).ljust(settled, b"\0")
                    assert disk[:settled] == prefix
            writer.finish()
            conversion.finish(writer.size)
            assert len(disk) == conversion.settled
        assert disk == os.pread(target.fileno(), len(disk) + 1, 0)


@settings(max_examples=200)
@given(layouts(), st.data())
def test_an_image_with_a_bit_flipped_in_its_tables_is_refused_or_converted_as_its_tables_say(
    layout: Layout, data: st.DataObject
) -> None:
    image, _ = build(layout)
    broken = bytearray(image)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    _judge(bytes(broken))


@settings(max_examples=100)
@given(layouts(), st.data())
def test_an_image_cut_anywhere_is_refused_or_lacks_nothing(layout: Layout, data: st.DataObject) -> None:
    image, _ = build(layout)
    _judge(image[: data.draw(st.integers(0, len(image)))])


def _judge(image: bytes) -> None:
    """Whatever is not refused is converted as qemu-img converts it."""
    with tempfile.TemporaryDirectory() as name:
        path, raw = Path(name, "image"), Path(name, "raw")
        path.write_bytes(image)
        try:
            header = qcow2.parse_header(image[: qcow2.HEADER_BYTES])
            qcow2.check_safety(header)
            if header.size > 64 << 20 or header.snapshots:  # QEMU reads internal snapshots as well
                return
            with path.open("rb") as source, raw.open("xb") as target:
                qcow2.mapped_bytes(source.fileno(), header)
                convert(source.fileno(), target.fileno(), header)
        except UnsafeImage:
            return
        argv: list[str | Path] = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, Path(name, "judged")]
        subprocess.run(argv, check=True, capture_output=True)
        assert Path(name, "judged").read_bytes() == raw.read_bytes()
