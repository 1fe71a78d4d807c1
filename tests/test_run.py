"""The door to subprocesses: what a program is given, how it may end, and that nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from underlay.errors import ToolFailed, ToolMissing, ToolTimedOut
from underlay.run import SEARCH_PATH, Ended, Limits, run, run_to_end

LIMITS = Limits(seconds=30)
MIB = 1 << 20


def sh(script: str, *, limits: Limits = LIMITS) -> str:
    return run(["sh", "-c", script], limits=limits).decode()


def our_children() -> set[str]:
    """Children of all our threads; a fixture of another test may have some."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text("ascii").split()}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.01)


def test_the_standard_output_of_a_program_is_returned() -> None:
    assert b"one\0two\n" == run(["printf", r"one\0two\n"], limits=LIMITS)


def test_an_argument_is_never_read_by_a_shell(tmp_path: Path) -> None:
    assert f"$HOME; `id` * {tmp_path}" == run(["printf", "%s", f"$HOME; `id` * {tmp_path}"], limits=LIMITS).decode()


def test_a_path_may_be_an_argument_whatever_its_bytes(tmp_path: Path) -> None:
    strange = Path(os.fsdecode(bytes(tmp_path) + b"/\xff:name"))
    strange.write_bytes(b"content")

    assert b"content" == run(["cat", strange], limits=LIMITS)


def test_much_output_on_both_pipes_is_read_without_a_deadlock() -> None:
    assert 3 * MIB == len(sh(f"head -c {3 * MIB} /dev/zero >&2; head -c {3 * MIB} /dev/zero"))


# ------------------------------------------------------------------------------------------------------------- what it is given


def test_a_program_is_given_what_it_reads() -> None:
    content = os.urandom(300_000)
    assert content == run_to_end(["cat"], limits=LIMITS, content=content).output


def test_a_program_may_end_without_reading_what_it_is_given() -> None:
    assert 7 == run_to_end(["sh", "-c", "exit 7"], limits=LIMITS, content=bytes(MIB)).status


@pytest.mark.parametrize("dies_with_caller", [True, False])
def test_a_program_may_be_given_an_environment_and_is_looked_for_in_its_path(tmp_path: Path, *, dies_with_caller: bool) -> None:
    program = tmp_path / "of-a-test"
    program.write_text('#!/bin/sh\necho "$A $(id -u >/dev/null && echo found) ${LC_ALL-none}"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{SEARCH_PATH}", "A": "given"}
    limits = Limits(seconds=30, dies_with_caller=dies_with_caller)

    assert b"given found none\n" == run_to_end(["of-a-test"], limits=limits, environment=environment).output
    with pytest.raises(ToolMissing):
        run_to_end(["of-a-test"], limits=limits)


def test_the_environment_is_built_and_not_inherited(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from underlay.run import Limits, run\n"
        "os.environ['SECRET'] = 'x'\n"
        "print(run(['env'], limits=Limits(seconds=30)).decode())\n"
    )
    inherited = {"PATH": os.environ["PATH"], "LC_ALL": "de_DE.UTF-8", "LD_PRELOAD": "", "HOME": os.fspath(tmp_path)}

    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=inherited)

    names = dict(line.split("=", 1) for line in done.stdout.split())
    assert "C" == names["LC_ALL"]
    assert {"LC_ALL", "PATH"} == names.keys() - {"PWD", "SHLVL", "_"}


def test_a_program_is_looked_for_in_the_built_path_only(tmp_path: Path) -> None:
    tool = tmp_path / "underlay-test-tool"
    tool.write_text("#!/bin/sh\necho found\n", encoding="ascii")
    tool.chmod(0o755)
    program = "from underlay.run import Limits, run\nrun(['underlay-test-tool'], limits=Limits(seconds=30))\n"

    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": os.fspath(tmp_path)},
    )

    assert "ToolMissing" in done.stderr


def test_the_standard_input_is_empty() -> None:
    program = "from underlay.run import Limits, run\nprint(run(['cat'], limits=Limits(seconds=30)))\n"

    done = subprocess.run([sys.executable, "-c", program], input=b"typed", check=True, capture_output=True)

    assert b"b''" == done.stdout.strip()


def test_no_open_file_is_handed_down(tmp_path: Path) -> None:
    fd, inheritable = os.open(tmp_path, os.O_RDONLY), True
    os.set_inheritable(fd, inheritable)
    try:
        assert os.fspath(tmp_path) not in sh("ls -l /proc/self/fd")
    finally:
        os.close(fd)


# --------------------------------------------------------------------------------------------------------------- how it may end


def test_a_program_that_is_not_there_is_missing() -> None:
    with pytest.raises(ToolMissing, match=r"^no-such-tool is not installed$") as error:
        run(["no-such-tool", "x"], limits=LIMITS)

    assert error.value.hint is None


def test_a_path_through_a_file_is_missing_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ToolMissing):
        run([tmp_path / "file" / "tool"], limits=LIMITS)


@pytest.mark.component("root")
@pytest.mark.parametrize(("tool", "package"), [("qemu-img", "qemu-utils"), ("gpgv", "gpgv")])
def test_a_missing_tool_has_the_package_in_its_hint(tmp_path: Path, tool: str, package: str) -> None:
    """In an empty root directory of its own, nothing of the built path is there."""
    program = (
        "import underlay.run as door\n"
        "from underlay.errors import ToolMissing\n"
        "try:\n"
        f"    door.run([{tool!r}, '--version'], limits=door.Limits(seconds=30))\n"
        "except ToolMissing as error:\n"
        "    print(error, '|', error.hint)\n"
    )
    setup = (
        f"import os\nimport underlay.errors, underlay.run, encodings.ascii\nos.chroot({os.fspath(tmp_path)!r})\nos.chdir('/')\n"
    )

    done = subprocess.run([sys.executable, "-c", setup + program], check=True, capture_output=True, text=True)

    assert f"{tool} is not installed | install it: apt-get install {package}" == done.stdout.strip()


def test_a_program_that_may_not_be_executed_cannot_be_started(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n", encoding="ascii")

    with pytest.raises(ToolFailed, match=r"tool cannot be started: Permission denied$"):
        run([tmp_path / "tool"], limits=LIMITS)


def test_too_long_an_argument_cannot_be_started() -> None:
    with pytest.raises(ToolFailed, match=r"^true cannot be started: Argument list too long$"):
        run(["true", "x" * (8 * MIB)], limits=LIMITS)


def test_a_failure_tells_the_status_and_the_last_line() -> None:
    with pytest.raises(ToolFailed, match=r"^sh failed \(status 3\): the reason$"):
        sh("echo output; echo first >&2; echo the reason >&2; exit 3")


def test_a_failure_that_speaks_on_standard_output_is_heard() -> None:
    with pytest.raises(ToolFailed, match=r"^sh failed \(status 1\): the reason$"):
        sh("echo the reason; exit 1")


def test_a_silent_failure_says_so() -> None:
    with pytest.raises(ToolFailed, match=r"^false failed \(status 1\): it printed nothing$"):
        run(["false"], limits=LIMITS)


def test_a_failure_may_be_an_answer() -> None:
    ended = run_to_end(["sh", "-c", "echo output; echo reason >&2; exit 3"], limits=LIMITS)
    assert Ended(status=3, output=b"output\n", errors=b"reason\n") == ended
    assert -9 == run_to_end(["sh", "-c", "kill -9 $$"], limits=LIMITS).status
    with pytest.raises(ToolMissing):
        run_to_end(["underlay-no-such-tool"], limits=LIMITS)


def test_a_failure_may_print_any_bytes() -> None:
    with pytest.raises(ToolFailed, match="�"):
        sh(r"printf '\377\n' >&2; exit 1")


@pytest.mark.parametrize(("number", "words"), [(9, "Killed"), (6, "Aborted")])
def test_an_end_by_a_signal_is_named(number: int, words: str) -> None:
    with pytest.raises(ToolFailed, match=rf"^sh failed \(signal {number}, {words}\): it printed nothing$"):
        sh(f"kill -{number} $$")


def test_an_end_by_a_signal_without_a_name_is_told_all_the_same() -> None:
    with pytest.raises(ToolFailed, match=r"^sh failed \(signal 40, "):
        sh("kill -40 $$")


# ------------------------------------------------------------------------------------------------------------------- its limits


def test_a_program_that_takes_too_long_is_killed() -> None:
    started = time.monotonic()

    with pytest.raises(ToolTimedOut, match=r"^sleep was killed after 0.2 s$"):
        run(["sleep", "60"], limits=Limits(seconds=0.2))

    assert time.monotonic() - started < 10


def test_a_program_that_ignores_signals_is_killed() -> None:
    with pytest.raises(ToolTimedOut):
        sh("trap '' TERM INT HUP; while :; do sleep 1; done", limits=Limits(seconds=0.3))


def test_a_child_that_keeps_the_pipes_open_is_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()

    with pytest.raises(ToolTimedOut):
        sh(f"sleep 60 & echo $! > {tmp_path}/pid", limits=Limits(seconds=2))

    assert time.monotonic() - started < 10
    os.kill(int((tmp_path / "pid").read_text(encoding="ascii")), signal.SIGKILL)


def test_a_program_stays_in_our_process_group() -> None:
    assert str(os.getpgrp()) == sh("cat /proc/$$/stat").rpartition(")")[2].split()[2]


def test_no_pipe_and_no_child_is_left() -> None:
    before, children = set(os.listdir("/proc/self/fd")), our_children()
    for _ in range(3):
        with pytest.raises(ToolTimedOut):
            run(["sleep", "60"], limits=Limits(seconds=0.05))
        with pytest.raises(ToolFailed):
            run(["false"], limits=LIMITS)

    assert set() == set(os.listdir("/proc/self/fd")) - before
    assert set() == our_children() - children


def test_an_interruption_kills_the_program(tmp_path: Path) -> None:
    """The program says that it runs only when we surely wait for it."""
    program = (
        "from underlay.run import Limits, run\n"
        f"run(['sh', '-c', 'sleep 0.5; echo $$ > {tmp_path}/pid; exec sleep 60'], limits=Limits(seconds=60))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text(encoding="ascii").strip():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert b"KeyboardInterrupt" in errors
    wait_until_dead(int((tmp_path / "pid").read_text(encoding="ascii")))


def test_a_program_that_is_bound_to_us_dies_with_us(tmp_path: Path) -> None:
    """By util-linux's setpriv, which every Debian and Ubuntu has."""
    program = (
        "from underlay.run import Limits, run\n"
        "limits = Limits(seconds=60, dies_with_caller=True)\n"
        f"script = 'cd {tmp_path}; echo $$ > new; mv new pid; exec sleep 60'\n"
        "run(['sh', '-c', script], limits=limits)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()

    wait_until_dead(int((tmp_path / "pid").read_text(encoding="ascii")))


def test_a_program_that_is_bound_to_us_ends_as_any_other() -> None:
    bound = Limits(seconds=30, memory=1 << 30, cpu_seconds=5, dies_with_caller=True)

    assert "output\n" == sh("echo output", limits=bound)
    with pytest.raises(ToolFailed, match=r"^sh failed \(status 3\): the reason$"):
        sh("echo the reason >&2; exit 3", limits=bound)
    with pytest.raises(ToolMissing, match=r"^no-such-tool is not installed$"):
        run(["no-such-tool"], limits=bound)
    with pytest.raises(ToolTimedOut, match=r"^sleep was killed after 0.2 s$"):
        run(["sleep", "60"], limits=Limits(seconds=0.2, dies_with_caller=True))


GREEDY = "import time; time.sleep(0.3); block = bytearray(800 << 20); print(len(block))"


def test_the_address_space_is_limited() -> None:
    assert f"{800 * MIB}\n".encode() == run([sys.executable, "-c", GREEDY], limits=LIMITS)

    with pytest.raises(ToolFailed, match="MemoryError"):
        run([sys.executable, "-c", GREEDY], limits=Limits(seconds=30, memory=400 * MIB))


def test_the_processor_time_is_limited() -> None:
    started = time.monotonic()

    with pytest.raises(ToolFailed, match=r"\(signal 24, CPU time limit exceeded\)"):
        sh("while :; do :; done", limits=Limits(seconds=60, cpu_seconds=1))

    assert time.monotonic() - started < 30


def test_our_own_limits_stay_as_they_are() -> None:
    def limits() -> str:
        return Path("/proc/self/limits").read_text(encoding="ascii")

    before = limits()

    run(["true"], limits=Limits(seconds=30, memory=400 * MIB, cpu_seconds=5))

    assert before == limits()


@pytest.mark.component("root")
def test_a_lower_limit_that_we_run_under_stands() -> None:
    """Only root may raise a hard limit, so nobody else's is raised."""
    program = (
        "import os, resource\n"
        "from underlay.run import Limits, run\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 5))\n"
        "os.setgid(65534)\nos.setuid(65534)\n"
        "print(run(['sh', '-c', 'ulimit -v; ulimit -t'], limits=Limits(seconds=30, memory=2 << 30, cpu_seconds=30)).decode())\n"
    )

    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert [str((1 << 30) // 1024), "5"] == done.stdout.split()


def test_a_program_that_has_ended_before_its_limits_were_set_is_no_trouble() -> None:
    for _ in range(100):
        run(["true"], limits=Limits(seconds=30, memory=1 << 30, cpu_seconds=5))


def test_many_threads_may_run_programs_at_once() -> None:
    def echo(number: int) -> str:
        limits = Limits(seconds=30, memory=1 << 30, cpu_seconds=5)
        return run(["sh", "-c", f"echo {number}"], limits=limits).decode().strip()

    with ThreadPoolExecutor(8) as pool:
        assert [str(number) for number in range(200)] == list(pool.map(echo, range(200)))


def test_a_tool_that_is_bound_to_us_dies_when_we_are_killed() -> None:
    script = (
        "from underlay.run import Limits, run\n"
        "run(['sh', '-c', 'echo $$ >&2; exec sleep 60'], limits=Limits(seconds=60, dies_with_caller=True))\n"
    )
    # The tool's own standard error is a pipe of its caller's, so its pid is found as the caller's child.
    with subprocess.Popen([sys.executable, "-c", script]) as caller:
        children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
        deadline = time.monotonic() + 30
        while not (found := children.read_text(encoding="ascii").split()) or not _sleeps(int(found[0])):
            assert time.monotonic() < deadline, "the tool never started"
            time.sleep(0.01)
        caller.kill()
    wait_until_dead(int(found[0]))


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")


# ------------------------------------------------------------------------------------------------------------ left to its end

INTERRUPTED = """
import sys
from pathlib import Path
from underlay.run import Limits, run
try:
    script = f"touch {sys.argv[1]}.begun; sleep 1; echo much; touch {sys.argv[1]}"
    run(["sh", "-c", script], limits=Limits(seconds=30, is_left_to_end=True))
except KeyboardInterrupt:
    print(Path(sys.argv[1]).exists())
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_who_is_interrupted_waits_for_a_program_that_is_left_to_its_end(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    command = [sys.executable, "-c", INTERRUPTED, str(ended)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as caller:
        wait_for(tmp_path / "ended.begun")
        os.killpg(caller.pid, signal.SIGINT)  # as a terminal does
        told, _ = caller.communicate(timeout=30)

    assert "True\n" == told


def test_a_program_that_is_left_to_its_end_goes_on_after_its_time(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with pytest.raises(ToolTimedOut, match="goes on"):
        run(["sh", "-c", f"sleep 1; echo much; touch {ended}"], limits=Limits(seconds=0.1, is_left_to_end=True))

    assert not ended.exists()
    wait_for(ended)


def test_a_program_that_is_left_to_its_end_is_given_and_tells_as_any_other() -> None:
    ended = run_to_end(
        ["sh", "-c", "cat; echo no >&2; exit 3"], limits=Limits(seconds=30, is_left_to_end=True), content=b"content"
    )

    assert Ended(status=3, output=b"content", errors=b"no\n") == ended
