"""The class that takes the place of Nova's: what holds where no Nova is. Within a Nova: tests/components/nova."""

import subprocess
import sys

from underlay.openstack.nova import get_cache_fname

WITHOUT_NOVA = "import sys; sys.modules['nova'] = None\n"


def _python(code: str) -> str:
    """What a new Python prints in which no Nova can be imported."""
    return subprocess.run([sys.executable, "-c", WITHOUT_NOVA + code], check=True, capture_output=True, text=True).stdout


def test_an_image_s_file_has_the_name_that_nova_gives_it() -> None:
    assert "0d5e6b61602d758984b3bf038267614d6016eb2a" == get_cache_fname("fd0cb2f1-8375-44c9-b1f4-3e1f4c4a8ef0")
    assert "da39a3ee5e6b4b0d3255bfef95601890afd80709" == get_cache_fname("")


def test_an_image_id_is_hashed_in_utf_8() -> None:
    assert "faac730169a8dbe13a8bcc565db062d86aae4dd4" == get_cache_fname("b\u00e4r")


def test_the_module_is_imported_without_nova_and_the_name_of_a_file_is_told() -> None:
    code = "from underlay.openstack.nova import ImageCacheManager, get_cache_fname; print(len(get_cache_fname('x')))"
    assert "40\n" == _python(code)


def test_importing_the_module_imports_no_oslo_and_no_nova() -> None:
    code = "import underlay.openstack.nova; print([name for name in sys.modules if name.startswith('oslo_concurrency')])"
    assert "[]\n" == _python(code)


def test_the_class_says_that_nova_is_missing() -> None:
    code = """
from underlay.errors import ExtraMissing
from underlay.openstack.nova import ImageCacheManager
try:
    ImageCacheManager()
except ExtraMissing as error:
    print(error.code, "nova-compute" in error.hint)
"""
    assert "extra-missing True\n" == _python(code)
