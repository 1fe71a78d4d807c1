"""libvirt-python, imported when it is first needed: it is optional, and it loads libvirt itself."""

from importlib import import_module
from typing import Any

from underlay.errors import ExtraMissing


def library() -> Any:
    """The module.

    Raises:
        ExtraMissing
    """
    try:
        return import_module("libvirt")
    except ImportError as error:
        raise ExtraMissing("libvirt-python is not installed", hint="pip install 'underlay[libvirt]'") from error
