"""The top of the command line: how a command is chosen, and how every failure ends."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from machine import MIB, Machine, command_line, run
from test_registry import install
from underlay.testing.httpserver import Served, serving
from underlay.values import replace
from underlay.version import __version__

COMMANDS = [
    "fetch", "disk", "list", "show", "du", "prune", "evict", "explain", "pin", "unpin", "lease", "release", "leases", "hosts",
    "precache", "vm", "check", "demo", "completion",
]  # fmt: skip
DISK_COMMANDS = ["create", "list", "show", "resize", "remove"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


def in_shell(script: str, argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["sh", "-c", script, "sh", *argv], capture_output=True, text=True, timeout=60, check=False)


# ------------------------------------------------------------------------------------------------------------------------ help


def test_the_version_is_told() -> None:
    assert f"underlay, version {__version__}\n" == run(command_line(["--version"])).out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["disk", "--help"], *([one, "--help"] for one in COMMANDS)])
def test_every_command_explains_itself(arguments: list[str]) -> None:
    ended = run(command_line(arguments))

    assert (0, "") == (ended.status, ended.err)
    assert ended.out.startswith("Usage: underlay")
    for name in COMMANDS if arguments[0].startswith("-") else ():
        assert f"\n  {name} " in ended.out


@pytest.mark.parametrize(("arguments", "commands"), [([], COMMANDS), (["disk"], DISK_COMMANDS)])
def test_without_a_command_the_help_is_printed_as_it_is(arguments: list[str], commands: list[str]) -> None:
    ended = run(command_line(arguments))

    assert (2, "") == (ended.status, ended.out)
    assert ended.err.startswith("Usage: underlay")
    assert all(f"\n  {name} " in ended.err for name in commands)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["frobnicate"], "frobnicate"),
        (["list", "--frobnicate"], "--frobnicate"),
        (["fetch"], "REF"),
        (["fetch", "a", "b"], "b"),
        (["disk", "create", "web-1"], "--image"),
        (["disk", "frobnicate"], "frobnicate"),
        (["--log-format", "xml", "list"], "xml"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_told_in_one_line(arguments: list[str], told: str) -> None:
    ended = run(command_line(arguments))

    assert (2, "", 1) == (ended.status, ended.out, ended.err.count("\n"))
    assert ended.err.startswith("underlay: ")
    assert told in ended.err
    assert "--help')" in ended.err


def test_a_command_line_that_cannot_be_understood_is_told_to_programs_too() -> None:
    ended = run(command_line(["list", "--json", "--frobnicate"]))

    assert (2, "", "usage") == (ended.status, ended.err, ended.error["code"])


# -------------------------------------------------------------------------------------------------------------------- failures


def test_an_error_is_one_line_with_its_hint(machine: Machine) -> None:
    ended = machine.run("show", "nothing")

    assert (40, "") == (ended.status, ended.out)
    assert "underlay: no cache has 'nothing' ('underlay list' shows what is there)\n" == ended.err


@pytest.mark.parametrize("options", [["--json"], ["--log-format=json"], []])
def test_bytes_that_are_not_text_break_no_answer(machine: Machine, options: list[str]) -> None:
    before = [os.fsencode(one) for one in machine.argv(*(one for one in options if one != "--json"))]
    argv = [*before, b"fetch", b"file:///\xff\n", *([b"--json"] if "--json" in options else [])]

    ended = subprocess.run(argv, capture_output=True, check=False, timeout=60)

    answer = ended.stdout if "--json" in options else ended.stderr
    assert 0 < ended.returncode < 128
    assert 1 == len(answer.splitlines())
    if options:
        told = msgspec.json.decode(answer)
        assert b"Traceback" not in answer
        assert {"error"} == told.keys() or "problem" == told["level"]


def test_an_error_is_an_answer_for_programs(machine: Machine) -> None:
    ended = machine.run("show", "nothing", "--json")

    assert (40, "") == (ended.status, ended.err)
    assert {
        "code": "not-cached",
        "message": "no cache has 'nothing'",
        "hint": "'underlay list' shows what is there",
    } == ended.error


@pytest.mark.parametrize("option", [["--log-format", "json"], ["--log-format=json"]])
def test_an_error_is_an_event_of_a_json_log(machine: Machine, option: list[str]) -> None:
    ended = machine.run(*option, "show", "nothing")

    told = json.loads(ended.err)
    assert (40, "", "problem", "not-cached") == (ended.status, ended.out, told["level"], told["event"])
    assert {"time", "level", "event", "detail", "hint"} == told.keys()


def test_what_a_server_says_moves_no_cursor(machine: Machine) -> None:
    with serving({"/a.img": Served(status=404, headers={"X": "y"})}) as server:
        ended = machine.run("fetch", server.url("/a.img?%1b[2J"))

    assert 20 == ended.status
    assert "\x1b" not in ended.err


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """The environment of a host on which a third party's source has a defect."""
    site = tmp_path / "site"
    site.mkdir()
    install(site)
    begin = "    def describe(self, ref, *, known=()):\n"
    source = (site / "another.py").read_text()
    (site / "another.py").write_text(source.replace(begin, begin + "        raise ValueError('two\\nlines of woe')\n"))
    return dict(os.environ) | {"PYTHONPATH": os.fspath(site)}


def test_a_defect_is_told_in_one_line_with_its_place_and_never_as_a_traceback(machine: Machine, broken: dict[str, str]) -> None:
    ended = machine.run("fetch", "another:image", env=broken)

    assert (1, "", 1) == (ended.status, ended.out, ended.err.count("\n"))
    assert "internal error at another.py:" in ended.err
    assert "ValueError: two lines of woe" in ended.err
    assert "report it" in ended.err


def test_a_defect_is_told_to_programs_too(machine: Machine, broken: dict[str, str]) -> None:
    ended = machine.run("fetch", "another:image", "--json", env=broken)

    assert (1, "", "internal") == (ended.status, ended.err, ended.error["code"])
    assert [] == list((machine.base / ".underlay" / "tmp").iterdir())


# ------------------------------------------------------------------------------------------------------------------ interrupts


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_fetch_ends_in_one_line_and_the_next_goes_on(machine: Machine, *, as_json: bool) -> None:
    whole = Served(bytes(range(256)) * 4096 * 8, etag='"1"')
    with serving({"/a.img": replace(whole, stall_after=4 * MIB)}) as server:
        process = machine.start("fetch", server.url("/a.img"), *(["--json"] if as_json else []))
        server.wait_until_sent("/a.img", 4 * MIB)
        while not any(path.stat().st_size for path in (machine.base / ".underlay" / "tmp").rglob("download")):
            assert None is process.poll()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

        assert 130 == process.returncode
        if as_json:
            assert {"error": {"code": "interrupted", "message": "interrupted", "hint": None}} == json.loads(out)
        else:
            assert "underlay: interrupted" == err.splitlines()[-1]
        assert "Traceback" not in err
        assert "\n\n" not in err
        assert ([], []) == machine.host().images()
        server.serve("/a.img", whole)
        assert 0 == machine.run("fetch", server.url("/a.img")).status
        assert server.requests[-1].headers["range"].startswith("bytes=")
    assert [] == list((machine.base / ".underlay" / "tmp").iterdir())
    [image], _ = machine.host().images()
    assert whole.body == image.path.read_bytes()


# ------------------------------------------------------------------------------------------------------------- output that ends


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["disk", "list"], ["check"], ["show", "abcdef"], ["completion", "zsh"]]
)
def test_a_reader_who_has_gone_is_no_failure(machine: Machine, arguments: list[str]) -> None:
    for number in range(500):
        (machine.base / f"abcdef{number:034x}").write_bytes(bytes(512))
    process = machine.start(*arguments)
    assert process.stdout is not None
    process.stdout.close()

    assert (0, "") == (process.wait(60), process.stderr.read() if process.stderr else "")
    if process.stderr:
        process.stderr.close()


def test_a_fetch_goes_on_when_nobody_reads_its_events(machine: Machine) -> None:
    process = subprocess.Popen(
        machine.argv("-v", "fetch", machine.raw_image()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read().startswith(b"fetched file:///")

    assert 0 == process.wait(60)
    assert 1 == len(machine.host().images()[0])


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["completion", "zsh"]])
def test_an_answer_that_cannot_be_written_is_a_failure_of_its_own(machine: Machine, arguments: list[str]) -> None:
    ended = in_shell('exec "$@" >/dev/full', machine.argv(*arguments))

    assert (1, 1) == (ended.returncode, ended.stderr.count("\n")), ended.stderr
    assert "No space left on device" in ended.stderr
    assert "defect" not in ended.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_who_closes_the_streams_wants_to_hear_nothing(machine: Machine, closed: str) -> None:
    ended = in_shell(f'exec "$@" {closed}', machine.argv("fetch", machine.raw_image()))

    assert 0 == ended.returncode, ended.stderr
    assert 1 == len(machine.host().images()[0])


def test_a_name_that_the_terminals_encoding_does_not_have_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "größe").mkdir()
    machine = Machine.make(tmp_path / "größe")
    machine.host().ensure(f"file://{tmp_path}/gr%C3%B6%C3%9Fe/{Path(machine.raw_image()).name}")

    ended = machine.run("list", "--wide", env=dict(os.environ) | {"PYTHONIOENCODING": "ascii"})
    shown = machine.run("du", env=dict(os.environ) | {"PYTHONIOENCODING": "ascii"})

    assert (0, 0) == (ended.status, shown.status), shown.err
    assert r"gr\xf6\xdfe" in shown.out


# ------------------------------------------------------------------------------------------------------------------ completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_is_printed(shell: str) -> None:
    ended = run(command_line(["completion", shell]))

    assert (0, "") == (ended.status, ended.err)
    assert "_UNDERLAY_COMPLETE" in ended.out


def test_bash_takes_the_script_and_completes_commands() -> None:
    script = run(command_line(["completion", "bash"])).out
    assert 0 == subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode

    env = dict(os.environ) | {"_UNDERLAY_COMPLETE": "bash_complete", "COMP_WORDS": "underlay disk re", "COMP_CWORD": "2"}
    ended = run(command_line([]), env=env)

    assert ["plain,rebase", "plain,remove", "plain,resize"] == sorted(ended.out.split())
