"""Clouds as openstacksdk's configuration knows them: clouds.yaml and the environment's ``OS_…``, whose reader is that library.

It is imported on use, because that takes half a second and it is an extra.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from underlay.errors import ExtraMissing


@dataclass(frozen=True, slots=True)
class Library:
    """What was imported: openstacksdk, and the errors of keystoneauth beneath it."""

    sdk: Any
    errors: Any

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What either raises when a cloud, or what is said of it, is at fault."""
        return (self.sdk.exceptions.SDKException, self.errors.ClientException)


def imported(extra: str) -> Library:
    """The library.

    Args:
        extra: of ours, that installs it.

    Raises:
        ExtraMissing
    """
    try:
        return Library(import_module("openstack"), import_module("keystoneauth1.exceptions"))
    except ImportError as error:
        raise ExtraMissing("openstacksdk is not installed", hint=f"pip install 'underlay[{extra}]'") from error


def region_of(library: Library, cloud: str | None, *, timeout: float, **options: str) -> Any:
    """The library's ``CloudRegion`` of a cloud, by its name in clouds.yaml; None: the environment's, or the only one. No I/O
    but on those files.

    Args:
        timeout: seconds that a service may take for one answer.
        options: the library's own, which come before the files.

    Raises:
        one of ``library.failures``: nothing can be made of what is configured.
    """
    return read_region(library, cloud, timeout=timeout, **options)[0]


def read_region(library: Library, cloud: str | None, *, timeout: float, **options: str) -> tuple[Any, tuple[Path, ...]]:
    """As `region_of`, and the files that it was read from."""
    try:
        config = library.sdk.config.OpenStackConfig(app_name="underlay")
        region = config.get_one(cloud=cloud or None, api_timeout=timeout, **options)
        found = (config.config_filename, config.secure_config_filename)
        return region, tuple(Path(file) for file in found if file)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what the library says of values of a wrong kind
        kind = type(error).__name__  # its text may hold a value, and that a password
        raise library.sdk.exceptions.ConfigException(f"openstacksdk makes nothing of the cloud {cloud!r} ({kind})") from error
