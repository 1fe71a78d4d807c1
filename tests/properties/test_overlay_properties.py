"""Overlays of any size with any clusters: qemu-img finds nothing to complain of, and each cluster is counted once."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import corpus
from machine import qemu_img_json
from underlay.formats.qcow2.write import Layout, plan_overlay

LARGEST_TABLE = 32 << 20  # bytes of an L1 table

cluster_sizes = st.integers(9, 21).map(lambda bits: 1 << bits)


@st.composite
def shapes(draw: st.DrawFn, *, most_entries: int = LARGEST_TABLE // 8) -> tuple[int, int]:
    """A size, spread over all magnitudes that an L1 table can map, and a cluster size."""
    cluster = draw(cluster_sizes)
    most = min(most_entries * (cluster // 8) * cluster, 1 << 62)
    size = draw(st.one_of(st.integers(0, most), st.integers(0, most.bit_length() - 1).map(lambda bits: 1 << bits)))
    return size + draw(st.integers(0, 1024)) if size + 1024 <= most else size, cluster


@given(shapes())
def test_refcounts_cover_what_is_allocated_and_no_more(shape: tuple[int, int]) -> None:
    size, cluster = shape

    layout = plan_overlay(size, cluster_bytes=cluster)

    assert (0, True) == (layout.size % 512, size <= layout.size < size + 512)
    assert layout.l1_entries * (cluster // 8) * cluster >= layout.size
    assert layout.clusters <= layout.block_clusters * (cluster // 2)
    assert layout.block_clusters * 8 <= layout.table_clusters * cluster
    assert not _counts_itself(layout, table=layout.table_clusters - 1, blocks=layout.block_clusters)
    assert not _counts_itself(layout, table=layout.table_clusters, blocks=layout.block_clusters - 1)


def _counts_itself(layout: Layout, *, table: int, blocks: int) -> bool:
    """Whether tables of this size would do."""
    clusters = 1 + table + blocks + layout.l1_clusters
    return clusters <= blocks * (layout.cluster_bytes // 2) and blocks * 8 <= table * layout.cluster_bytes


@pytest.mark.component("qemu-img")
@settings(max_examples=40)
@given(shapes(most_entries=1 << 18))
def test_qemu_img_finds_every_overlay_in_order(shape: tuple[int, int]) -> None:
    size, cluster = shape
    with tempfile.TemporaryDirectory() as directory:
        base = corpus.raw(Path(directory) / "base", 512, [(0, b"base")])
        overlay = corpus.overlay(Path(directory) / "disk", backing=base, backing_format="raw", size=size, cluster_bytes=cluster)

        check = qemu_img_json("check", "-f", "qcow2", overlay)

        assert (0, 0, 0) == (check["check-errors"], check.get("leaks", 0), check.get("corruptions", 0))
        assert overlay.stat().st_size == check["image-end-offset"]
        info = qemu_img_json("info", "-f", "qcow2", overlay)
        assert (-(-size // 512) * 512, cluster) == (info["virtual-size"], info["cluster-size"])
