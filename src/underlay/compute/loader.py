"""Which compute driver is used: by the name of an entry point, or by a dotted name below this package."""

import logging
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from underlay.compute.driver import ComputeDriver
from underlay.compute.errors import DriverNotLoaded
from underlay.compute.options import configured_driver

GROUP = "underlay.compute"

_LOG = logging.getLogger(__name__)
_XEN = "xenapi.XenAPIDriver"


def load_compute_driver(virtapi: Any, compute_driver: str | None = None) -> ComputeDriver:
    """The driver of this name, made with the VirtAPI object and nothing else.

    Args:
        compute_driver: the name of an entry point in the group ``underlay.compute``; else ``module.attribute`` below
            ``underlay.compute``, where an attribute that is a function which makes a driver is as good as a class. None and
            nothing mean the configured one.

    Raises:
        DriverNotLoaded: there is no name, nothing of the name, or it is no driver. Logged as an error. It is a SystemExit.
        ConfigError: the configuration cannot be read.
        Exception: whatever else the driver's constructor raises.
    """
    name = compute_driver or configured_driver()
    if not name:
        _LOG.error("no compute driver is named, neither by the caller nor in the configuration")
        raise DriverNotLoaded("no compute driver is configured", hint="set compute_driver in [compute]")
    _LOG.info("loading the compute driver %s", name)
    try:
        return _checked(_found(name)(virtapi))
    except ImportError as error:
        _LOG.exception("the compute driver %s cannot be loaded", name)
        raise DriverNotLoaded(f"the compute driver {name} cannot be loaded: {error}", hint=_known()) from error
    except ValueError as error:
        _LOG.exception("the compute driver %s is not of type ComputeDriver", name)
        raise DriverNotLoaded(f"the compute driver {name} is not of type ComputeDriver: {error}", hint=_known()) from error


def is_xenapi() -> bool:
    """Whether the configuration names Xen's driver, whatever is loaded."""
    return configured_driver() == _XEN


def _checked(driver: object) -> ComputeDriver:
    if not isinstance(driver, ComputeDriver):
        raise ValueError(f"it is of type {type(driver).__name__}")
    return driver


def _found(name: str) -> Any:
    module, attribute = _location(name)
    imported = import_module(module)
    try:
        return getattr(imported, attribute)
    except AttributeError as error:
        raise ImportError(f"{module} has no {attribute}") from error


def _location(name: str) -> tuple[str, str]:
    # A name with a dot is one of this package's own modules, so that nobody else's entry point can take it over.
    if "." not in name and (point := next(iter(entry_points(group=GROUP, name=name)), None)):
        return point.module, point.attr
    module, _, attribute = f"{GROUP}.{name}".rpartition(".")
    return module, attribute


def _known() -> str:
    return f"known drivers: {', '.join(sorted(point.name for point in entry_points(group=GROUP))) or 'none'}"
