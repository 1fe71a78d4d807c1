"""Layouts of qcow2 for Hypothesis."""

from hypothesis import strategies as st

from qcow2_layouts import Kind, Layout


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """An image of a few dozen clusters."""
    version = draw(st.sampled_from([2, 3, 3, 3]))
    extended = version == 3 and draw(st.booleans())
    cluster_bits = draw(st.sampled_from([14, 16] if extended else [9, 9, 10, 12, 13, 16]))
    known = list(Kind) if version == 3 else [Kind.ABSENT, Kind.PLAIN, Kind.COMPRESSED]
    kinds = draw(st.lists(st.sampled_from(known), min_size=1, max_size=150 if cluster_bits == 9 else 24))
    bits32 = st.integers(0, 2**32 - 1)
    parts = {}
    if extended:
        for index, kind in enumerate(kinds):
            if kind is Kind.PLAIN and draw(st.booleans()):
                allocated = draw(bits32)
                parts[index] = (allocated, draw(bits32) & ~allocated)
    whole = len(kinds) << cluster_bits
    return Layout(
        kinds=kinds,
        cluster_bits=cluster_bits,
        version=version,
        extended=extended,
        zstd=version == 3 and draw(st.booleans()),
        dirty=version == 3 and draw(st.booleans()),
        refcount_order=draw(st.sampled_from([4, 5, 6])) if version == 3 else 4,
        parts=parts,
        size=whole - draw(st.sampled_from([0, 0, 512])) if whole > 512 else whole,
        seed=draw(st.integers(0, 2**32)),
        gap=draw(st.sampled_from([0, 1, 700])),
    )
