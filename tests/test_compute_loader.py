"""Finding the driver that is named, and what becomes of names that lead nowhere."""

import logging
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from underlay.compute import ComputeDriver, DriverNotLoaded, is_xenapi, load_compute_driver
from underlay.compute.options import _check_image_type_exclude_list
from underlay.errors import ConfigError

CONFIG = '[caches.base]\nkind = "base"\npath = "{path}/base"\n[compute]\n{options}\n'
FOREIGN = """
from underlay.compute import ComputeDriver

class Driver(ComputeDriver):
    pass

def made(virtapi):
    return Driver(virtapi)

def something(virtapi):
    return "no driver"

def unwilling(virtapi):
    raise ValueError("the virtapi does not please")

def lacking(virtapi):
    import no_such_module

def broken(virtapi):
    raise ZeroDivisionError("broken")

def mistaken(virtapi):
    return virtapi.no_such_attribute
"""


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the options of [compute] to whoever reads the configuration."""

    def configure(options: str) -> None:
        path = tmp_path / "underlay.toml"
        path.write_text(CONFIG.format(path=tmp_path, options=options))
        monkeypatch.setenv("UNDERLAY_CONFIG", os.fspath(path))

    configure("")
    return configure


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody else's, with entry points."""
    site = tmp_path / "site"
    metadata = site / "foreign-1.dist-info"
    metadata.mkdir(parents=True)
    (site / "foreign_drivers.py").write_text(FOREIGN)
    names = ["Driver", "made", "something", "unwilling", "lacking", "broken", "mistaken", "absent"]
    lines = [f"{name.lower()} = foreign_drivers:{name}" for name in names]
    stolen = "driver.ComputeDriver = foreign_drivers:something"
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "\n".join(["[underlay.compute]", *lines, stolen, "gone = no_such_package:Driver"])
    )
    monkeypatch.syspath_prepend(site)


def failed(name: str | None = None) -> DriverNotLoaded:
    with pytest.raises(SystemExit) as caught:
        load_compute_driver(None, name)
    assert isinstance(caught.value, DriverNotLoaded)
    assert 1 == caught.value.code
    return caught.value


@pytest.mark.usefixtures("configured")
def test_a_dotted_name_is_one_below_the_package() -> None:
    virtapi = object()
    driver = load_compute_driver(virtapi, "driver.ComputeDriver")
    assert type(driver) is ComputeDriver
    assert driver.virtapi is virtapi


@pytest.mark.usefixtures("configured", "foreign")
@pytest.mark.parametrize("name", ["driver", "made"])
def test_an_entry_point_is_a_driver_or_a_function_that_makes_one(name: str) -> None:
    virtapi = object()
    driver = load_compute_driver(virtapi, name)
    assert "foreign_drivers" == type(driver).__module__
    assert driver.virtapi is virtapi


@pytest.mark.usefixtures("configured", "foreign")
def test_nobody_takes_a_name_of_ours_over() -> None:
    assert type(load_compute_driver(None, "driver.ComputeDriver")) is ComputeDriver


def test_the_configured_driver_is_loaded_when_none_is_named(configured: Any) -> None:
    configured('compute_driver = "driver.ComputeDriver"')
    for name in (None, ""):
        assert type(load_compute_driver(None, name)) is ComputeDriver


@pytest.mark.usefixtures("configured")
def test_without_any_name_the_service_cannot_start(caplog: pytest.LogCaptureFixture) -> None:
    assert "no compute driver is configured" in str(failed())
    assert ["ERROR"] == [record.levelname for record in caplog.records]


@pytest.mark.usefixtures("configured", "foreign")
@pytest.mark.parametrize(
    "name", ["nothing", "driver.Nothing", "nothing.Driver", "..", ".Driver", "os.path", "underlay.compute.driver.ComputeDriver"]
)
def test_a_name_that_leads_nowhere_is_logged_with_its_traceback(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert f"{name} cannot be loaded" in str(error := failed(name))
    assert "driver" in str(error.hint)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None


@pytest.mark.usefixtures("configured", "foreign")
@pytest.mark.parametrize("name", ["gone", "absent", "lacking"])
def test_what_cannot_be_imported_is_not_loaded(name: str) -> None:
    assert "cannot be loaded" in str(failed(name))


@pytest.mark.usefixtures("configured", "foreign")
@pytest.mark.parametrize(("name", "why"), [("something", "it is of type str"), ("unwilling", "does not please")])
def test_what_is_no_driver_is_said_so(name: str, why: str, caplog: pytest.LogCaptureFixture) -> None:
    assert why in str(failed(name))
    assert "is not of type ComputeDriver" in caplog.text


@pytest.mark.usefixtures("configured", "foreign")
@pytest.mark.parametrize(("name", "error"), [("broken", ZeroDivisionError), ("mistaken", AttributeError)])
def test_any_other_error_of_a_driver_is_its_own(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        load_compute_driver(None, name)


@pytest.mark.usefixtures("configured")
def test_a_module_is_no_driver_and_cannot_be_called() -> None:
    import_module("underlay.compute.errors")
    with pytest.raises(TypeError, match="not callable"):
        load_compute_driver(None, "errors")


@pytest.mark.usefixtures("configured")
def test_what_is_loaded_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "underlay.compute"):
        load_compute_driver(None, "driver.ComputeDriver")
    assert "loading the compute driver driver.ComputeDriver" in caplog.text


def test_a_program_that_does_not_look_ends_with_1(configured: Any, tmp_path: Path) -> None:
    program = "from underlay.compute import load_compute_driver; load_compute_driver(None, 'nothing.Driver')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert 1 == ended.returncode
    assert "DriverNotLoaded" not in ended.stderr.splitlines()[-1]


def test_a_configuration_that_cannot_be_read_is_its_own_error(configured: Any) -> None:
    configured("compute_driver = 3")
    with pytest.raises(ConfigError, match=r"compute\.compute_driver"):
        load_compute_driver(None)


def test_xen_s_driver_is_the_configured_one_or_not(configured: Any) -> None:
    assert not is_xenapi()
    configured('compute_driver = "xenapi.XenAPIDriver"')
    assert is_xenapi()


# ------------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(("mib", "gib"), [(0, 0), (1, 1), (1024, 1), (1025, 2), (10240, 10)])
def test_reserved_disk_is_rounded_up_to_whole_gib(configured: Any, mib: int, gib: int) -> None:
    configured(f"reserved_host_disk_mb = {mib}")
    assert gib == ComputeDriver._get_reserved_host_disk_gb_from_config()


def test_a_ratio_is_the_configured_one_else_the_inventory_s_else_the_initial_one(configured: Any) -> None:
    inventory: dict[str, Any] = {"VCPU": {"allocation_ratio": 2.5}, "MEMORY_MB": {"allocation_ratio": 3}}
    assert {"VCPU": 4.0, "MEMORY_MB": 1.0, "DISK_GB": 1.0} == ComputeDriver._get_allocation_ratios({})
    assert {"VCPU": 2.5, "MEMORY_MB": 3.0, "DISK_GB": 1.0} == ComputeDriver._get_allocation_ratios(inventory)
    configured("cpu_allocation_ratio = 16.0\nram_allocation_ratio = 0\ninitial_disk_allocation_ratio = 1.5")
    assert {"VCPU": 16.0, "MEMORY_MB": 3.0, "DISK_GB": 1.5} == ComputeDriver._get_allocation_ratios(inventory)


@pytest.mark.parametrize(
    "options", ["cpu_allocation_ratio = -1", "reserved_host_disk_mb = -1", 'image_type_exclude_list = "raw"']
)
def test_an_option_of_the_wrong_kind_is_refused(configured: Any, options: str) -> None:
    configured(options)
    with pytest.raises(ConfigError, match="compute"):
        ComputeDriver._get_allocation_ratios({})


# -------------------------------------------------------------------------------------------------------------- capabilities


@pytest.mark.usefixtures("configured")
def test_nothing_is_supported_and_every_trait_says_so() -> None:
    traits = ComputeDriver(None).capabilities_as_traits()
    assert not any(traits.values())
    assert {"COMPUTE_IMAGE_TYPE_PLOOP", "COMPUTE_SAME_HOST_COLD_MIGRATE", "COMPUTE_RESCUE_BFV"} <= traits.keys()
    without = {"has_imagecache", "supports_evacuate", "supports_pcpus", "supports_vtpm"}
    assert len(ComputeDriver.capabilities) == len(traits) + len(without)
    assert without <= ComputeDriver.capabilities.keys()


def test_image_types_that_are_left_out_have_no_trait_whatever_the_driver_can(configured: Any) -> None:
    configured('image_type_exclude_list = ["vmdk"]')
    driver = ComputeDriver(None)
    driver.capabilities = {
        "has_imagecache": True,
        "supports_image_type_vmdk": True,
        "supports_image_type_raw": True,
        "mine": True,
    }
    assert {"COMPUTE_IMAGE_TYPE_VMDK": False, "COMPUTE_IMAGE_TYPE_RAW": True} == driver.capabilities_as_traits()
    assert not _check_image_type_exclude_list("supports_image_type_vmdk", supported=True)
    assert _check_image_type_exclude_list("supports_image_type_raw", supported=True)
    assert not _check_image_type_exclude_list("supports_image_type_raw", supported=False)
