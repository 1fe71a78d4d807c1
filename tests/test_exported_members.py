"""The public face: what ``underlay`` offers, and nothing besides."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import underlay


def test_the_public_face_is_sorted_and_has_no_name_twice() -> None:
    assert sorted(set(underlay.__all__)) == list(underlay.__all__)


@pytest.mark.parametrize("name", underlay.__all__)
def test_each_public_name_can_be_imported_and_is_documented(name: str) -> None:
    member = getattr(underlay, name)

    assert not isinstance(member, ModuleType)
    if name != "__version__":
        assert name == member.__name__
        assert (inspect.getdoc(member) or "").strip()


def test_what_is_visible_is_what_is_offered() -> None:
    assert list(underlay.__all__) == sorted(dir(underlay))


def test_everything_else_is_hidden() -> None:
    names: dict[str, object] = {}

    exec("from underlay import *", names)

    names.pop("__builtins__")
    assert set(underlay.__all__) == names.keys()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Manager'"):
        underlay.Manager  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys; import underlay; sys.exit(' '.join(m for m in sys.modules if m.startswith('underlay.') ))"

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert "underlay.version" == ended.stderr.strip()


def test_the_methods_of_a_host_are_documented() -> None:
    for name, member in inspect.getmembers(underlay.Host, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name
