"""Names to adapters: ours without a look at the installed packages, others' by their entry points."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from machine import Machine
from underlay import registry
from underlay.disks.flat import FlatBackend
from underlay.disks.qcow2 import Qcow2Backend
from underlay.errors import ExtraMissing, UnknownBackend, UnknownScheme
from underlay.inventory.file import FileInventory
from underlay.sources.file import FileSource
from underlay.sources.http import HttpSource
from underlay.sources.simplestreams import SimplestreamsSource

ANOTHER = '''
from contextlib import contextmanager
from underlay.disks.flat import FlatBackend
from underlay.model import ImageVersion


class Source:
    """Serves one image, whatever is asked for."""

    schemes = frozenset({"another"})
    revalidate_after = 0.0

    def fixed_id(self, ref):
        return None

    def version_id(self, ref, sha256):
        return f"{ref.canonical}#{sha256}"

    def describe(self, ref, *, known=()):
        return ImageVersion(ref=ref, size=len(CONTENT))

    @contextmanager
    def open(self, version, *, offset=0):
        yield Stream()


CONTENT = b"an image" * 512


class Stream:
    position = 0

    def readinto(self, buffer):
        piece = CONTENT[self.position : self.position + len(buffer)]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)


class Backend(FlatBackend):
    """As the flat one."""


class Instances:
    """Knows of none."""

    def __init__(self, location, *, host, hosts):
        self.told = (location, host, hosts)

    def instances(self):
        return []
'''
ENTRY_POINTS = """
[underlay.sources]
another = another:Source
broken = no_such_module:Source
file = another:Source

[underlay.inventories]
another = another:Instances
file = another:Instances

[underlay.disks]
another = another:Backend
broken = another:NoSuchClass
"""


def install(site: Path) -> None:
    """A third party's distribution, as pip lays it out."""
    (site / "another.py").write_text(ANOTHER)
    (site / "another-1.0.dist-info").mkdir()
    (site / "another-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (site / "another-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    install(directory)
    monkeypatch.syspath_prepend(directory)
    return directory


SOURCES = [
    ("file", FileSource),
    ("http", HttpSource),
    ("https", HttpSource),
    ("simplestreams", SimplestreamsSource),
]


@pytest.mark.parametrize(("scheme", "kind"), SOURCES)
def test_each_scheme_has_its_source(scheme: str, kind: type) -> None:
    source = registry.open_source(scheme, {})

    assert isinstance(source, kind)
    assert scheme in source.schemes


def test_a_source_gets_its_arguments() -> None:
    source = registry.open_source("file", {"allowed_paths": (Path("/srv"),)})

    assert FileSource(allowed_paths=(Path("/srv"),)) == source


@pytest.mark.parametrize(("name", "kind"), [("flat", FlatBackend), ("raw", FlatBackend), ("qcow2", Qcow2Backend)])
def test_each_backend_has_its_name_and_flat_has_two(name: str, kind: type) -> None:
    assert isinstance(registry.open_backend(name, {}), kind)


def test_an_unknown_scheme_is_told_with_the_known_ones(site: Path) -> None:
    with pytest.raises(UnknownScheme, match="gopher") as refused:
        registry.open_source("gopher", {})

    assert "known schemes: another, az, broken, file, glance, gs, http, https, oci, s3, simplestreams" == refused.value.hint


def test_an_unknown_backend_is_told_with_the_known_ones(site: Path) -> None:
    with pytest.raises(UnknownBackend, match="floppy") as refused:
        registry.open_backend("floppy", {})

    assert "known backends: another, broken, default, flat, lvm, ploop, qcow2, raw, rbd" == refused.value.hint


def test_a_third_partys_adapters_are_found_by_their_entry_points(site: Path) -> None:
    assert "another" == type(registry.open_source("another", {})).__module__
    assert "another" == type(registry.open_backend("another", {})).__module__
    inventory = registry.open_inventory("another:some:where", host="node1", hosts=["node1", "node2"])
    assert ("another", ("some:where", "node1", ["node1", "node2"])) == (type(inventory).__module__, vars(inventory)["told"])


def test_a_third_party_cannot_take_our_names(site: Path) -> None:
    assert isinstance(registry.open_source("file", {}), FileSource)
    assert isinstance(registry.open_inventory("file:/a", host="node1", hosts=["node1"]), FileInventory)


def test_an_adapter_that_cannot_be_loaded_says_what_it_lacks(site: Path) -> None:
    with pytest.raises(ExtraMissing, match="no_such_module"):
        registry.open_source("broken", {})
    with pytest.raises(ExtraMissing, match="NoSuchClass"):
        registry.open_backend("broken", {})


def test_a_third_partys_source_and_backend_do_the_main_job(site: Path, tmp_path: Path) -> None:
    host = Machine.make(tmp_path).host()

    disk = host.create_disk("web-1", "another:image", backend="another")

    assert b"an image" * 512 == disk.path.read_bytes()
    assert ["another:image"] == [image.ref for image in host.images()[0]]


def test_the_entry_points_that_we_publish_are_what_the_registry_knows() -> None:
    for group, known in (
        ("underlay.sources", registry._SOURCES),
        ("underlay.disks", registry._DISKS),
        ("underlay.inventories", registry._INVENTORIES),
    ):
        published = {
            point.name: point.value for point in entry_points(group=group) if point.dist and point.dist.name == "underlay"
        }
        assert dict(known) == published


def test_our_own_adapters_are_opened_without_a_look_at_the_installed_packages() -> None:
    script = (
        "import sys; from underlay import registry; registry.open_backend('qcow2', {}); registry.open_source('file', {});"
        " sys.exit('importlib.metadata' in sys.modules)"
    )

    assert 0 == subprocess.run([sys.executable, "-c", script], check=False).returncode
