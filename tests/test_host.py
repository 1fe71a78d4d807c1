"""A host: which cache, which source, which backend; images found by whatever means them."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from machine import GIB, MIB, Machine
from underlay.config import Config, embedded_config, load_config
from underlay.errors import (
    CacheMissing,
    ImageNotFound,
    InvalidDigest,
    InvalidRef,
    InvalidSize,
    LayoutDisagrees,
    NotAnImage,
    NotCached,
    OverlayRefused,
    UnknownBackend,
    UnknownCache,
    UnknownLayout,
    UnknownScheme,
)
from underlay.host import Host
from underlay.model import Digest
from underlay.refs import parse_ref
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Served, serving

MASTERS = '[caches.masters]\nkind = "masters"\npath = "{root}/masters"\n'


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "masters").mkdir()
    return Machine.make(tmp_path, extra=MASTERS.format(root=tmp_path))


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


# ---------------------------------------------------------------------------------------------------------------------- opening


def test_a_host_is_opened_by_a_path_a_text_or_a_configuration(machine: Machine) -> None:
    config = load_config(machine.config)

    assert config == Host.open(machine.config).config == Host.open(str(machine.config)).config == Host.open(config).config


def test_a_host_without_a_name_for_its_configuration_takes_the_environments(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERLAY_CONFIG", str(machine.config))

    assert machine.config == Host.open().config.origin


def test_opening_a_host_touches_no_directory(machine: Machine) -> None:
    machine.instances.rmdir()
    machine.base.rmdir()

    machine.host()

    assert not machine.base.exists()


# --------------------------------------------------------------------------------------------------------------------- ensuring


def test_an_ensured_image_is_published_recorded_and_in_use(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()

    image = host.ensure(ref)

    assert (machine.root / "image.raw").read_bytes() == image.path.read_bytes()
    assert (machine.base, ref, "raw", 16 * MIB) == (image.cache, image.ref, image.format, image.virtual_size)
    assert (machine.base / ".underlay" / "used" / image.name).exists()


def test_texts_and_values_mean_the_same(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()
    image = host.ensure(ref)
    assert image.record is not None
    digest = image.record.digests[0]

    again = host.ensure(parse_ref(ref), checksum=Digest.parse(digest))

    assert image.path == again.path == host.ensure(ref, checksum=digest).path


def test_a_fetch_says_how_the_image_came_to_be_there(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()

    assert "fetched" == host.fetch(ref).reason.code
    assert "revalidated" == host.fetch(ref).reason.code


def test_the_first_cache_is_used_unless_another_is_named(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()

    assert machine.base == host.ensure(ref).cache
    assert machine.root / "masters" == host.ensure(ref, cache="masters").cache


def test_an_observer_hears_of_the_work(machine: Machine) -> None:
    recorder = Recorder()

    machine.host(recorder).ensure(machine.raw_image())

    assert {"fetching", "verified", "published"} <= set(recorder.codes)
    assert {16 * MIB} == {step.total for step in recorder.steps}


@pytest.mark.parametrize(
    ("error", "ask"),
    [
        (InvalidRef, lambda host: host.ensure("not a ref")),
        (UnknownScheme, lambda host: host.ensure("gopher:image")),
        (InvalidDigest, lambda host: host.ensure("file:///image", checksum="sha256:abc")),
        (UnknownCache, lambda host: host.ensure("file:///image", cache="other")),
        (UnknownCache, lambda host: host.ensure("file:///image", cache="")),
        (ImageNotFound, lambda host: host.ensure("file:///nowhere/image.raw")),
        (UnknownBackend, lambda host: host.create_disk("web-1", "file:///image", backend="floppy")),
        (InvalidSize, lambda host: host.create_disk("web-1", "file:///image", size="20")),
        (UnknownCache, lambda host: host.create_disk("web-1", "file:///image", cache="other")),
    ],
)
def test_what_cannot_be_meant_makes_nothing_on_a_host_that_was_never_used(
    tmp_path: Path, error: type[Exception], ask: Callable[[Host], object]
) -> None:
    host = Host.open(embedded_config(tmp_path / "data"))

    with pytest.raises(error):
        ask(host)

    if error is not ImageNotFound:  # which only a laid out cache can ask for
        assert not (tmp_path / "data").exists()
    assert ([], []) == host.images()
    assert [] == host.disks()


def test_the_embedded_default_makes_its_directories_with_the_first_image(tmp_path: Path) -> None:
    (tmp_path / "image.raw").write_bytes(b"an image" * 512)
    host = Host.open(embedded_config(tmp_path / "data"))
    assert ([], []) == host.images()

    image = host.ensure(f"file://{tmp_path}/image.raw")
    disk = host.create_disk("web-1", image, backend="flat")

    assert tmp_path / "data" / "base" == image.cache
    assert tmp_path / "data" / "instances" / "web-1" / "disk" == disk.path


def test_a_configured_directory_is_never_made(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    host = machine.host()
    machine.base.rmdir()

    for ask in (lambda: host.ensure(machine.raw_image()), lambda: host.images(cache="base")):
        with pytest.raises(CacheMissing, match=str(machine.base)):
            ask()

    assert not machine.base.exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('{"layout": 2, "nova_locks": null}', UnknownLayout),
        ('{"layout": "1"}', UnknownLayout),
        ("{}", UnknownLayout),
        ("", UnknownLayout),
        ('{"layout": 1, "nova_locks": "/elsewhere"}', LayoutDisagrees),
    ],
)
def test_a_directory_of_another_layout_is_neither_read_nor_written(
    tmp_path: Path, content: str, error: type[Exception]
) -> None:
    machine = Machine.make(tmp_path)
    host = machine.host()
    (machine.base / ".underlay").mkdir()
    (machine.base / ".underlay" / "format").write_text(content)

    for ask in (lambda: host.ensure(machine.raw_image()), lambda: host.images(cache="base")):
        with pytest.raises(error, match=str(machine.base)):
            ask()

    assert [machine.base / ".underlay" / "format"] == list((machine.base / ".underlay").iterdir())


def test_a_cache_that_cannot_be_looked_at_hides_no_other(machine: Machine) -> None:
    recorder = Recorder()
    host = machine.host(recorder)
    image = host.ensure(machine.raw_image(), cache="masters")
    machine.base.rmdir()

    found, _ = host.images()

    assert [image.path] == [one.path for one in found] == [one.path for one in host.find(image.name)]
    event = recorder.wait_for_event("cache-missing", seconds=0)
    assert ("warning", str(machine.base)) == (event.level, event.fields["path"])
    for ask in (lambda: host.ensure(f"file://{machine.root}/image.raw"), lambda: host.images(cache="base")):
        with pytest.raises(CacheMissing, match=str(machine.base)):
            ask()


# ---------------------------------------------------------------------------------------------------------------------- finding


def test_an_image_is_found_by_all_that_means_it(machine: Machine, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = machine.raw_image()
    image = host.ensure(ref)
    (machine.root / "link").symlink_to(machine.base)
    monkeypatch.chdir(machine.root)

    for text in (
        image.name,
        image.name[:6],
        image.name[:-1],
        f"{image.name[:12]}.raw",
        ref,
        str(image.path),
        f"./base/{image.name}",
        f"base/../base/{image.name}",
        str(machine.root / "link" / image.name),
    ):
        assert [image.name] == [found.name for found in host.find(text)], text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "zzzzzz",
        "0123456",
        ".underlay",
        "..",
        "/etc/passwd",
        "/",
        "file:///other.raw",
        "\0",
        "/\0/x",
        "*",
        "a" * 5000,
    ],
)
def test_what_no_image_is_meant_by_is_not_cached(machine: Machine, host: Host, text: str) -> None:
    host.ensure(machine.raw_image())

    with pytest.raises((NotCached, InvalidRef)):
        host.find(text)


def test_a_beginning_shorter_than_six_characters_means_nothing(machine: Machine, host: Host) -> None:
    image = host.ensure(machine.raw_image())

    with pytest.raises(NotCached):
        host.find(image.name[:5])


def test_a_beginning_that_several_images_have_shows_them_all(machine: Machine, host: Host) -> None:
    names = [f"abcdef{number:034x}.raw" for number in (1, 2)]
    for name in [*names, f"fedcba{0:034x}.raw"]:
        (machine.base / name).write_bytes(bytes(512))

    assert names == [image.name for image in host.find("abcdef")]
    assert names == [image.name for image in host.find("abcdef.raw")]
    assert names[:1] == [image.name for image in host.find(names[0][:-1])]


@pytest.mark.component("qemu-img")
def test_a_ref_means_the_image_in_all_its_forms_and_caches(machine: Machine, host: Host) -> None:
    ref = machine.qcow2_image()
    host.ensure(ref)
    host.create_disk("web-1", ref, backend="flat")
    host.ensure(ref, cache="masters")

    assert {"qcow2", "raw"} == {image.format for image in host.find(ref)}
    assert {machine.base, machine.root / "masters"} == {image.cache for image in host.find(ref)}


def test_a_glance_image_that_nova_fetched_is_found_by_its_uuid(machine: Machine, host: Host) -> None:
    uuid = "0e4a5b3c-1f2d-4c6b-8a7e-9d8c7b6a5f4e"
    (machine.base / "21cd5d7ec3c2f2aa0b3b1e5d6cf6b1f07bd58f3e").write_bytes(b"another image" * 512)
    nova_name = hashlib.sha1(uuid.encode()).hexdigest()
    (machine.base / nova_name).write_bytes(b"an image" * 512)

    for text in (uuid, uuid.upper(), f"glance:{uuid}"):
        assert [machine.base / nova_name] == [image.path for image in host.find(text)]


def test_an_image_is_found_without_its_source(machine: Machine, host: Host) -> None:
    with serving({"/a.raw": Served(b"an image" * 512, etag='"1"')}) as server:
        ref = server.url("/a.raw")
        image = host.ensure(ref)
        asked = len(server.requests)

        assert [image.path] == [found.path for found in host.find(ref)]

        assert asked == len(server.requests)
    assert [image.path] == [found.path for found in host.find(ref)]


def test_the_credentials_in_a_ref_are_neither_needed_nor_told(machine: Machine, host: Host) -> None:
    with serving({"/a.raw": Served(b"an image" * 512, etag='"1"', credentials="user:secret")}) as server:
        image = host.ensure(server.url("/a.raw", credentials="user:secret"))
        ref = server.url("/a.raw")

    assert [image.path] == [found.path for found in host.find(ref)]
    with pytest.raises(NotCached) as refused:
        host.find("https://user:secret@example.org/b.raw")
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_what_stands_in_an_images_place_is_a_problem_and_never_followed(machine: Machine, host: Host, kind: str) -> None:
    good = host.ensure(machine.raw_image())
    name = 40 * "a"
    match kind:
        case "symlink":
            (machine.base / name).symlink_to(good.path)
        case "directory":
            (machine.base / name).mkdir()
        case _:
            os.mkfifo(machine.base / name)

    found, problems = host.images()

    assert [good.name] == [image.name for image in found]
    assert [("not-an-image", machine.base / name)] == [(problem.code, problem.path) for problem in problems]
    with pytest.raises(NotAnImage, match=name):
        host.find(name)


# ------------------------------------------------------------------------------------------------------------------------ disks


@pytest.mark.parametrize(("cow", "backend"), [("true", "qcow2"), ("false", "flat")])
def test_the_default_backend_is_the_configurations(tmp_path: Path, cow: str, backend: str) -> None:
    machine = Machine.make(tmp_path, disks=f"use_cow_images = {cow}")
    host, ref = machine.host(), machine.raw_image()

    assert backend == host.create_disk("web-1", ref).backend
    assert backend == host.create_disk("web-2", ref, backend="default").backend


@pytest.mark.parametrize("size", [GIB, "1GiB", "1024 MiB"])
def test_a_size_is_bytes_or_text_with_a_unit(machine: Machine, host: Host, size: int | str) -> None:
    assert GIB == host.create_disk("web-1", machine.raw_image(), size=size).size


def test_an_image_may_be_given_as_text_as_a_ref_or_as_ensured(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()

    disk = host.create_disk("web-1", ref)

    assert disk == host.create_disk("web-1", parse_ref(ref)) == host.create_disk("web-1", host.ensure(ref))


def test_an_image_of_no_configured_cache_is_not_cached(machine: Machine, host: Host, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Machine.make(tmp_path / "other")
    image = other.host().ensure(other.raw_image())

    with pytest.raises(NotCached, match=str(image.path)):
        host.create_disk("web-1", image)


def test_no_overlay_is_made_on_a_master_that_may_be_replaced(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()

    for image in (ref, host.ensure(ref, cache="masters")):
        with pytest.raises(OverlayRefused, match=str(machine.root / "masters")):
            host.create_disk("web-1", image, cache="masters")

    assert [] == list(machine.instances.iterdir())
    disk = host.create_disk("web-1", ref, cache="masters", backend="flat")
    assert (machine.root / "image.raw").read_bytes() == disk.path.read_bytes()


def test_a_host_may_be_shared_between_threads(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()

    with ThreadPoolExecutor(8) as pool:
        disks = list(pool.map(lambda number: host.create_disk(f"web-{number}", ref, size=GIB), range(16)))

    assert 16 == len({disk.path for disk in disks}) == len(host.disks())
    assert 1 == len({disk.base_path for disk in disks})


def test_a_disk_of_a_backend_that_is_gone_is_told_as_such(machine: Machine, host: Host) -> None:
    disk = machine.instances / "web-1" / "disk"
    disk.parent.mkdir()
    disk.touch()
    (disk.parent / "disk.info").write_text(f'{{"{disk}": "vhdx"}}')

    with pytest.raises(UnknownBackend, match="vhdx"):
        host.remove_disk("web-1")

    assert disk.exists()


def test_configurations_are_values(machine: Machine) -> None:
    first, second = load_config(machine.config), load_config(machine.config)

    assert isinstance(first, Config)
    assert first == second
