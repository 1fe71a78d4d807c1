"""The reference of the compute driver says what the code does: each method, error, capability and key."""

import inspect
import re
from pathlib import Path

import pytest

from test_compute_driver import NOTHING, VALUES, called, signatures
from test_compute_values import ERRORS
from underlay import compute
from underlay.compute import ComputeDriver
from underlay.compute.capabilities import IMAGE_TYPE, TRAITS
from underlay.compute.driver import THEMES
from underlay.compute.libvirt import LibvirtDriver

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "compute.md").read_text(encoding="utf-8")
TITLES = [
    "life cycle",
    "power",
    "volumes",
    "network",
    "consoles and diagnostics",
    "resize and migration",
    "live migration",
    "host and resources",
    "image cache",
    "events",
]


def table(*heading: str) -> list[list[str]]:
    """The rows of the table with this heading, without backticks."""
    lines = PAGE.splitlines()
    start = lines.index(f"| {' | '.join(heading)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


METHODS = {row[0]: row[1:] for row in table("Method", "Theme", "The base class", "The libvirt driver")}


def test_every_method_has_its_row_with_its_theme() -> None:
    themes = {name: title for theme, title in zip(THEMES, TITLES, strict=True) for name in vars(theme)}
    expected = {name: themes.get(name, "host and resources") for name in signatures()}
    assert {**expected, "need_legacy_block_device_info (property)": "volumes"} == {
        name: row[0] for name, row in METHODS.items()
    }


@pytest.mark.parametrize("name", sorted(signatures()))
def test_what_the_base_class_does_is_said(name: str) -> None:
    _, said, _ = METHODS[name]
    if name in NOTHING.split():
        assert "does nothing" == said
    elif name in VALUES:
        assert f"answers {VALUES[name]!r}" == said
    elif said == "NotImplementedError":
        with pytest.raises(NotImplementedError):
            called(ComputeDriver(None), name)
    else:
        body = inspect.getsource(getattr(ComputeDriver, name))
        assert "raise NotImplementedError" not in body


def test_what_the_libvirt_driver_does_is_said_of_each_method() -> None:
    for name, (_, base, said) in METHODS.items():
        plain = name.partition(" ")[0]
        is_own = getattr(LibvirtDriver, plain) is not getattr(ComputeDriver, plain)
        assert is_own == bool(re.match(r"yes\b", said)), name
        assert is_own or said in ("not yet", "as the base class") or re.fullmatch(r"never: .{10,}", said), name
        assert not (said == "as the base class" and base == "NotImplementedError"), name


def test_what_the_libvirt_driver_goes_by_of_an_image_is_said() -> None:
    package = Path(inspect.getfile(LibvirtDriver)).parent
    read = {
        name
        for path in package.glob("*.py")
        for name in re.findall(r'"((?:hw|img|os)_[a-z_]+)"', path.read_text(encoding="utf-8"))
    }
    told = {name for row in table("Property", "What it does") for name in re.findall(r"(?:hw|img|os)_[a-z_]+", row[0])}
    assert told == read - {"os_type"}


def test_what_the_libvirt_driver_reads_of_an_instance_is_said() -> None:
    package = Path(inspect.getfile(LibvirtDriver)).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    read = {*re.findall(r"\binstance\.([a-z_]+)", source), *re.findall(r'(?:field_of|getattr)\(instance, "([a-z_]+)"', source)}
    [[_, said]] = [row for row in table("Argument", "What is read") if row[0] == "instance"]
    # Two are ours: an element of the domain's metadata that no service has, and what tells a versioned object.
    assert set() == read - {"domain_metadata", "obj_attr_is_set"} - set(re.findall(r"[a-z_]+", said))


def test_what_the_libvirt_driver_supports_is_said_and_why_it_does_not() -> None:
    [supported] = [line for line in PAGE.splitlines() if line.startswith("The libvirt driver supports `")]
    wanted = {name for name, can in LibvirtDriver(None).capabilities.items() if can and IMAGE_TYPE not in name}
    assert wanted == set(re.findall(r"`(\w+)`", supported))
    told = " ".join(row[0] for row in table("Capability", "Why not")).replace("…", "supports_ephemeral_encryption")
    assert {name for name, can in LibvirtDriver(None).capabilities.items() if not can} == set(re.findall(r"supports_\w+", told))


def test_every_error_has_its_row() -> None:
    rows = {row[0]: tuple(row[1:]) for row in table("Error", "Made from", "Code", "Exit", "HTTP", "Meaning")}
    expected = {
        one.__name__: (
            ", ".join(sorted(one.keywords(), key=one.template.index)),
            one.code,
            str(one.exit_code),
            str(one.http_status),
            (inspect.getdoc(one) or "").partition("\n")[0],
        )
        for one in ERRORS
    }
    assert expected == rows


def test_every_capability_has_its_row_with_its_trait() -> None:
    rows = dict(table("Capability", "Trait"))
    assert {name: TRAITS.get(name, "") for name in ComputeDriver.capabilities} == rows


def test_every_function_of_block_devices_is_told() -> None:
    told = " ".join(row[0] for row in table("Function", "What it does"))
    functions = [name for name in compute.__all__ if name.islower() and name not in ("load_compute_driver", "is_xenapi")]
    for name in functions:
        assert name.replace("block_device_info_get_", "…_") in told or name in told or name in PAGE


def test_the_face_of_the_package_is_sorted_and_can_be_had() -> None:
    assert sorted(compute.__all__) == list(compute.__all__) == dir(compute)
    for name in compute.__all__:
        assert (getattr(compute, name).__doc__ or "").strip()
