"""Inspection of anything: it answers or refuses and never fails, whatever the bytes and the pieces that they come in."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

import corpus
import strategies
from underlay import qemuimg
from underlay.errors import ImageRefused, ToolFailed, UnsafeImage
from underlay.formats import qcow2, vmdk
from underlay.formats.inspect import Inspector
from underlay.model import ImageFacts

LABELS = st.sampled_from([None, "raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso", "gpt"])


def verdict(pieces: Sequence[bytes], *, label: str | None = None) -> ImageFacts | tuple[str, str]:
    """What inspection says of the bytes: facts, or the refusal's class and words."""
    inspector = Inspector(what="the image", label=label)
    try:
        for piece in pieces:
            inspector.feed(memoryview(piece))
        return inspector.finish()
    except ImageRefused as refusal:
        return type(refusal).__name__, str(refusal)


@given(strategies.images(), LABELS)
def test_any_bytes_are_answered_or_refused(content: bytes, label: str | None) -> None:
    verdict([content], label=label)


@given(st.data(), LABELS)
def test_the_verdict_is_the_same_in_any_pieces(data: st.DataObject, label: str | None) -> None:
    content = data.draw(strategies.images())

    assert verdict([content], label=label) == verdict(data.draw(strategies.pieces(content)), label=label)


@given(strategies.images())
def test_what_is_known_early_holds_at_the_end(content: bytes) -> None:
    inspector = Inspector(what="the image")
    try:
        inspector.feed(memoryview(content))
        early, facts = inspector.early, inspector.finish()
    except ImageRefused:
        return

    if early is not None:
        assert (early.format, early.label) == (facts.format, facts.label)
        assert early.virtual_size in (None, facts.virtual_size)


@given(strategies.images())
def test_an_accepted_raw_image_shows_all_its_bytes(content: bytes) -> None:
    facts = verdict([content])

    if isinstance(facts, ImageFacts) and facts.format == "raw":
        assert len(content) == facts.virtual_size


@given(st.binary(min_size=0, max_size=3000), st.integers(0, 3000), st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_vhdx_is_answered_or_refused_wherever_it_is_broken(noise: bytes, at: int, which: int) -> None:
    content = bytearray(corpus.bare_vhdx())
    place = (0, 192 << 10, (192 << 10) + 16, 1 << 20, (1 << 20) + 32, (1 << 20) + (64 << 10), 100, 2000)[which] + at % 64
    content[place : place + len(noise)] = noise

    whole = verdict([bytes(content)])

    assert whole == verdict([bytes(content[start : start + 50_001]) for start in range(0, len(content), 50_001)])


# ------------------------------------------------------------------------------------------------------------------------ qcow2


@given(strategies.qcow2_headers())
def test_any_qcow2_header_is_read_or_refused(beginning: bytes) -> None:
    try:
        header = qcow2.parse_header(beginning)
        qcow2.backing_name(beginning, header)
        qcow2.check_safety(header)
    except UnsafeImage:
        return

    assert header.version in (2, 3)
    assert 512 <= header.cluster_bytes <= 2 << 20
    assert 0 <= header.size <= header.l1_entries * header.l2_coverage
    assert (0, 0, 0) == (header.backing_offset, header.crypt_method, header.incompatible & 0b110)


@given(strategies.qcow2_headers())
def test_a_qcow2_header_that_is_read_says_what_its_bytes_say(beginning: bytes) -> None:
    try:
        header = qcow2.parse_header(beginning)
    except UnsafeImage:
        return

    assert beginning[4:8] == corpus.u32(header.version)
    assert beginning[8:20] == corpus.u64(header.backing_offset) + corpus.u32(header.backing_length)
    assert beginning[20:32] == corpus.u32(header.cluster_bits) + corpus.u64(header.size)
    assert beginning[32:48] == corpus.u32(header.crypt_method) + corpus.u32(header.l1_entries) + corpus.u64(header.l1_offset)
    assert (corpus.u64(header.incompatible) if header.version == 3 else beginning[72:80]) == beginning[72:80]


@given(strategies.qcow2_headers(), st.binary(max_size=4096))
def test_the_tables_of_any_file_are_counted_or_refused(beginning: bytes, rest: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(beginning + rest)
        file.flush()
        rule = None
        try:
            header = qcow2.parse_header(beginning)
            assert 0 <= qcow2.mapped_bytes(file.fileno(), header) <= header.size + 4096
        except UnsafeImage as refusal:
            rule = refusal.rule

    assert rule in {None, "qcow2-header", "qcow2-version", "corrupt", "cut-short"}


_WRITES = st.lists(
    st.tuples(
        st.sampled_from(["write -P 7", "write -P 7", "write -z", "write -z -u", "discard", "write -c -P 9"]),
        st.integers(0, 4 * 1024 - 64),
        st.integers(1, 600),
    ),
    min_size=1,
    max_size=6,
)
_LAYOUTS = st.sampled_from(
    [
        "cluster_size=512",
        "cluster_size=4k",
        "",
        "cluster_size=1M",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10",
    ]
)


@pytest.mark.component("qemu-img", "qemu-io")
@given(_LAYOUTS, _WRITES)
@settings(max_examples=40)
def test_the_mapped_bytes_bound_the_raw_form_whatever_a_guest_wrote(
    options: str, writes: Sequence[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        image = corpus.create(Path(directory, "image"), "qcow2", 4 << 20, options=options)
        cluster = qcow2.parse_header(image.read_bytes()[: qcow2.HEADER_BYTES]).cluster_bytes
        commands = []
        for command, start, length in writes:
            offset, size = start * 1024, length * 512
            if "-c" in command:  # compressed writes are of whole clusters
                offset, size = offset // cluster * cluster, cluster
            commands += ["-c", f"{command} {offset} {min(size, (4 << 20) - offset)}"]
        # QEMU refuses some of them, such as zeroes in version 2; what it did is what counts.
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, os.fspath(image)], check=False, capture_output=True)
        fd = os.open(image, os.O_RDONLY)
        try:
            bound = qcow2.mapped_bytes(fd, qcow2.parse_header(os.pread(fd, qcow2.HEADER_BYTES, 0)))
        finally:
            os.close(fd)

        converted = corpus.to_raw(image, Path(directory, "raw"), "qcow2").read_bytes()

    blocks = sum(any(converted[start : start + 4096]) for start in range(0, len(converted), 4096))
    assert blocks * 4096 <= bound


# ------------------------------------------------------------------------------------------------------------------------- VMDK


@given(strategies.vmdk_descriptors(), st.binary(max_size=60))
def test_any_vmdk_is_answered_or_refused(descriptor: bytes, noise: bytes) -> None:
    vmdk.is_descriptor(descriptor + noise)
    content = bytearray(corpus.vmdk_sparse(descriptor))
    content[4 : 4 + len(noise)] = noise

    verdict([bytes(content)])
    verdict([corpus.with_vmdk_footer(bytes(content))])


@given(st.integers(0, 130), st.binary(max_size=16))
def test_the_tables_of_any_vmdk_pass_or_are_refused(sector: int, noise: bytes) -> None:
    content = bytearray(corpus.vmdk_sparse(corpus.vmdk_descriptor()))
    content[sector * 512 + 4 : sector * 512 + 4 + len(noise)] = noise
    rule = None
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            vmdk.check_tables(file.fileno(), what="the image")
        except UnsafeImage as refusal:
            rule = refusal.rule

    assert rule in {None, "cut-short", "corrupt", "vmdk-header"}


@pytest.mark.component("qemu-img")
@given(strategies.vmdk_descriptors(), st.sampled_from([0, 4096, 4096]), st.sampled_from(["text", "sparse", "sparse"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
def test_an_accepted_vmdk_makes_qemu_open_nothing_else(descriptor: bytes, capacity: int, form: str) -> None:
    content = descriptor if form == "text" else corpus.vmdk_sparse(descriptor, capacity=capacity)
    assume(isinstance(verdict([content], label="vmdk"), ImageFacts))
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory, "image")
        image.write_bytes(content)
        corpus.raw(Path(directory, "other"), 4096)
        corpus.small(Path(directory, "base.vmdk"), "vmdk")

        try:
            found = qemuimg.info(image, format="vmdk")
        except ToolFailed:  # without its identifiers, QEMU does not open it at all
            assert b"CID" not in descriptor.replace(b"parentCID", b"") or b"parentCID" not in descriptor
            return

        assert (os.fspath(image),) == found.extents
        assert found.backing is None


@pytest.mark.component("qemu-img", "strace")
def test_converting_an_accepted_image_opens_that_image_only(tmp_path: Path) -> None:
    """The claim behind inspection, seen from the kernel."""
    for name in ("qcow2", "vmdk", "vdi", "vhdx", "vpc"):
        image = corpus.small(tmp_path / name, name)
        assert isinstance(verdict([image.read_bytes()]), ImageFacts)
        argv = ["strace", "-f", "-qq", "-e", "trace=openat,open,connect", "-o", os.fspath(tmp_path / "trace")]
        argv += ["qemu-img", "convert", "-f", name, "-O", "raw", os.fspath(image), os.fspath(tmp_path / "raw")]

        subprocess.run(argv, check=True, capture_output=True)

        trace = (tmp_path / "trace").read_text(encoding="utf-8", errors="replace")
        opened = {part for line in trace.splitlines() for part in line.split('"')[1::2] if part.startswith(os.fspath(tmp_path))}
        assert {os.fspath(image), os.fspath(tmp_path / "raw")} == opened
