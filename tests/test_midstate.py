"""sha256 that is put down and taken up gives hashlib's answers, and a state that is none is refused."""

import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from underlay import midstate
from underlay.midstate import Sha256, State


def begun() -> Sha256:
    found = midstate.new()
    assert found is not None, "this Python's OpenSSL hides SHA256_Init: its states cannot be read"
    return found


@given(st.binary(max_size=300), st.integers(0, 300))
def test_what_is_put_down_anywhere_goes_on_as_if_nothing_were(content: bytes, cut: int) -> None:
    first = begun()
    first.update(content[:cut])

    second = midstate.resumed(first.state())

    assert second is not None
    second.update(memoryview(bytearray(content[cut:])))
    assert hashlib.sha256(content).digest() == second.digest()


def test_a_digest_may_be_asked_for_and_gone_on_from() -> None:
    running = begun()
    running.update(b"abc")
    copy = running.copy()

    assert hashlib.sha256(b"abc").digest() == running.digest() == running.digest()
    running.update(b"def")
    assert hashlib.sha256(b"abcdef").digest() == running.digest()
    assert hashlib.sha256(b"abc").digest() == copy.digest()


def test_a_state_is_the_intermediate_hash_of_the_standard() -> None:
    # FIPS 180-4, 5.3.3: the initial hash value is what nothing leaves.
    assert State(words="6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19", length=0, rest="") == begun().state()


def test_a_state_after_more_than_half_a_gibibyte_counts_its_bits_on() -> None:
    content = bytes(1 << 20)
    first, expected = begun(), hashlib.sha256()
    for _ in range(513):  # more bits than fit one word of 32
        first.update(content)
        expected.update(content)

    second = midstate.resumed(first.state())

    assert second is not None
    second.update(b"the end")
    expected.update(b"the end")
    assert 513 << 20 == first.state().length
    assert expected.digest() == second.digest()


@pytest.mark.parametrize(
    "state",
    [
        State(words="", length=0, rest=""),
        State(words="zz" * 32, length=0, rest=""),
        State(words="00" * 31, length=0, rest=""),
        State(words="00" * 32, length=1, rest=""),
        State(words="00" * 32, length=-64, rest=""),
        State(words="00" * 32, length=65, rest="0011"),
        State(words="00" * 32, length=64, rest="00"),
    ],
)
def test_what_is_no_state_is_not_gone_on_from(state: State) -> None:
    assert midstate.resumed(state) is None


def test_a_python_without_openssl_has_no_states_and_says_so() -> None:
    # As one that was built without OpenSSL: hashlib has its own sha256 then, and nothing to read a state of.
    code = (
        "import sys, ctypes; sys.modules['_hashlib'] = None; ctypes.CDLL = lambda place: object()\n"
        "from underlay import midstate; from underlay.midstate import State\n"
        "assert midstate.new() is None\n"
        "assert midstate.resumed(State(words='00' * 32, length=0, rest='')) is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_hashes_otherwise_is_not_used() -> None:
    # SHA-224's functions are of the same form, and give another digest.
    code = (
        "import ctypes, _hashlib; found = ctypes.CDLL(_hashlib.__file__)\n"
        "class Other: SHA256_Init, SHA256_Update, SHA256_Final = found.SHA224_Init, found.SHA224_Update, found.SHA224_Final\n"
        "ctypes.CDLL = lambda place: Other\n"
        "from underlay import midstate; assert midstate.new() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_whose_context_is_larger_is_not_used_and_overruns_nothing() -> None:
    # SHA-512's context has 216 bytes where SHA-256's has 112; the allocator looks at what is behind each block.
    code = (
        "import ctypes, _hashlib; found = ctypes.CDLL(_hashlib.__file__)\n"
        "class Other: SHA256_Init, SHA256_Update, SHA256_Final = found.SHA512_Init, found.SHA512_Update, found.SHA512_Final\n"
        "ctypes.CDLL = lambda place: Other\n"
        "from underlay import midstate; assert midstate.new() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONMALLOC": "debug"})


def test_a_python_with_openssl_built_in_looks_for_its_functions_nowhere_else() -> None:
    code = (
        "import ctypes, hashlib, _hashlib; del _hashlib.__file__\n"
        "def never(place): raise AssertionError(place)\n"
        "ctypes.CDLL = never\n"
        "from underlay import midstate; assert midstate.new() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
