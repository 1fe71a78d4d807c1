"""libvirt-python, imported when it is first needed: it is optional, and it loads libvirt itself."""

import sys
from importlib import import_module
from typing import Any

from underlay.errors import ExtraMissing

_NAME = "libvirt"


def library() -> Any:
    """The module.

    Raises:
        ExtraMissing
    """
    is_first = _NAME not in sys.modules
    try:
        module = import_module(_NAME)
    except ImportError as error:
        raise ExtraMissing("libvirt-python is not installed", hint="pip install 'underlay[libvirt]'") from error
    if is_first:  # the handler of errors is the process's, and may be somebody else's by now
        module.registerErrorHandler(_ignore, None)  # libvirt's own prints what is raised as well
    return module


def _ignore(_context: Any, _error: Any) -> None:
    """It is raised."""
