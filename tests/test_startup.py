"""What a command imports before it can answer: nothing but what a hit needs, because that takes longer than its work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from machine import PATIENCE, Machine

# Beside Underlay and Python itself. typing_extensions is imported by msgspec where it is installed.
PACKAGES = frozenset({"click", "msgspec", "typing_extensions"})

# Of Underlay, below its own name. A new one here costs each command that makes a disk up to a few milliseconds: see `later`.
_MODULES = """
    attributes cache cli cli.disk cli.look cli.main cli.options cli.output cli.session config config.credentials
    config.disks config.document config.environment config.follow config.libvirt config.load config.objects
    config.sources config.values
    contracts diskinfo disks disks.flat disks.qcow2 errors filedisk files filesystems formats formats.qcow2
    formats.qcow2.entries formats.qcow2.header formats.qcow2.tables formats.qcow2.write hits
    holding host host.bring host.disks host.face host.parts instances later locks lookup model naming once order plainfiles
    plan policy policy.form policy.retry refs refs.file refs.glance refs.objects refs.oci refs.parse refs.simplestreams
    refs.text refs.web registry render render.answers render.lines retrying sources sources.file sources.objects
    sources.objects.access store store.ballast store.images store.layout store.leases store.locking store.refs store.roots
    store.staging units values version web web.client web.credentials web.pace web.status
"""
MODULES = frozenset(_MODULES.split())

# Of Python itself: each takes as long as a good part of the interpreter's start, and none is of use to a hit.
_NOT_OF_PYTHON = """
    asyncio concurrent.futures dataclasses email http.client importlib.metadata logging random
    shutil signal socket ssl subprocess tempfile
"""
NOT_OF_PYTHON = frozenset(_NOT_OF_PYTHON.split())

_TELL = """
import json, os, sys
before = set(sys.modules)  # what the interpreter and the environment's own files have imported
from underlay.cli import main
try:
    main(sys.argv[2:])
finally:
    with open(sys.argv[1], "w") as told:
        json.dump(sorted(set(sys.modules) - before), told)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """With an image and a disk of it."""
    machine = Machine.make(tmp_path_factory.mktemp("machine"))
    machine.host().create_disk("web-1", machine.raw_image())
    return machine


def imported(machine: Machine, *arguments: str) -> set[str]:
    """What a process of its own imports to run a command to its good end."""
    told = machine.root / "imported.json"
    argv = [sys.executable, "-c", _TELL, os.fspath(told), "--config", os.fspath(machine.config), *arguments]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    return set(json.loads(told.read_text()))


def others(modules: set[str]) -> set[str]:
    """The packages that are neither ours nor Python's."""
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"underlay"}


def ref_of(machine: Machine) -> str:
    return f"file://{machine.root}/image.raw"


@pytest.mark.parametrize("backend", ["qcow2", "flat"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_disk_of_an_image_that_is_here_needs_little(machine: Machine, form: list[str], backend: str) -> None:
    name = f"new-{backend}{''.join(form)}"

    modules = imported(machine, "disk", "create", name, "--image", ref_of(machine), "--backend", backend, *form)

    assert (machine.instances / name / "disk").exists()
    assert_little(modules)


@pytest.mark.parametrize("arguments", [["list"], ["show", "REF"], ["disk", "list"], ["disk", "show", "web-1"]])
def test_a_listing_for_programs_needs_little(machine: Machine, arguments: list[str]) -> None:
    asked = [ref_of(machine) if argument == "REF" else argument for argument in arguments]

    assert_little(imported(machine, *asked, "--json"))


@pytest.mark.parametrize("arguments", [["list"], ["show", "REF"], ["disk", "list"]])
def test_a_listing_for_people_needs_what_draws_it_and_no_more(machine: Machine, arguments: list[str]) -> None:
    asked = [ref_of(machine) if argument == "REF" else argument for argument in arguments]

    modules = imported(machine, *asked)

    assert PACKAGES | {"rich"} >= others(modules)
    assert set() == {f"underlay.{name}" for name in ("check", "ingest", "prune", "web.body", "qemuimg")} & modules


def assert_little(modules: set[str]) -> None:
    assert set() == others(modules) - PACKAGES
    assert set() == {name.removeprefix("underlay.") for name in modules if name.startswith("underlay.")} - MODULES
    assert set() == modules & NOT_OF_PYTHON


def test_what_the_package_promises_is_imported_on_first_use(machine: Machine) -> None:
    code = "import sys, underlay; assert not {'msgspec', 'click', 'underlay.host'} & set(sys.modules); underlay.Host"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=machine.root, timeout=PATIENCE)


@pytest.mark.parametrize("package", ["underlay.render", "underlay.web"])
def test_each_name_of_a_package_is_where_it_says(package: str, tmp_path: Path) -> None:
    code = (
        f"import {package} as package; print(sorted(package.__all__) == dir(package), *map(package.__getattr__, dir(package)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.startswith("True ")
    missing = f"import {package} as package; package.no_such_name"
    failed = subprocess.run([sys.executable, "-c", missing], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert f"module '{package}' has no attribute 'no_such_name'" in failed.stderr
