"""What is shipped for systemd: the units are sound, and leave a prune, a refresh and a scrub the rights that they need."""

import configparser
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from machine import Machine
from pruning import ORIGINAL, OTHER, nova_host, old_file, overlay, verdicts
from underlay.cli.main import cli

UNITS = Path(__file__).parents[1] / "contrib" / "systemd"
NAMES = ["underlay-prune", "underlay-refresh", "underlay-scrub"]
OWNER = 64055  # libvirt-qemu's number on Debian; any other user's would do


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("name", NAMES)
def test_the_service_runs_a_command_that_there_is(name: str) -> None:
    program, *arguments = shlex.split(unit(f"{name}.service")["Service"]["ExecStart"])

    assert "underlay" == Path(program).name
    command = cli.get_command(click.Context(cli), arguments[0])
    assert command is not None
    command.parse_args(click.Context(command), arguments[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_timer_starts_the_service(name: str) -> None:
    timer = unit(f"{name}.timer")

    assert (UNITS / f"{name}.service").exists()
    assert "timers.target" == timer["Install"]["WantedBy"]
    assert not unit(f"{name}.service").has_section("Install")  # the timer is what is enabled


def test_every_unit_is_tested() -> None:
    assert {f"{name}.{kind}" for name in NAMES for kind in ("service", "timer")} == {path.name for path in UNITS.iterdir()}


@pytest.mark.component("systemd-analyze")
@pytest.mark.parametrize("name", [f"{name}.{kind}" for name in NAMES for kind in ("service", "timer")])
def test_systemd_understands_the_units(name: str, tmp_path: Path) -> None:
    for path in UNITS.iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/bin/underlay", "/bin/true"))

    verified = subprocess.run(["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True, check=False)

    told = [line for line in verified.stderr.splitlines() if "underlay" in line]
    assert [] == told


@pytest.mark.component("root", "qemu-img", "leases")
def test_a_prune_can_do_its_work_with_the_rights_that_the_service_keeps(tmp_path: Path) -> None:
    machine = nova_host(tmp_path)
    kept, gone = old_file(machine, ORIGINAL), old_file(machine, OTHER)
    overlay(machine, kept)
    with old_file(machine, "swap_512").open("rb"):
        belongs_to_another_user(machine)
        ended = with_the_rights_of("underlay-prune.service", machine, "prune", "--json")

    assert 0 == ended.returncode, ended.stderr
    told = json.loads(ended.stdout)
    assert [str(gone)] == told["removed"]
    assert ("keep", ["open"]) == verdicts(told)["swap_512"]
    private = machine.base / ".underlay"
    assert {(OWNER, OWNER)} == {(path.stat().st_uid, path.stat().st_gid) for path in (private, *private.iterdir())}
    assert 0o2775 == (private / "leases").stat().st_mode & 0o7777


@pytest.mark.component("root", "qemu-img")
def test_a_refresh_can_do_its_work_with_the_rights_that_the_service_keeps(tmp_path: Path) -> None:
    machine = nova_host(tmp_path)
    belongs_to_another_user(machine)

    ended = with_the_rights_of("underlay-refresh.service", machine, "refresh", machine.qcow2_image(), "--json")

    assert 0 == ended.returncode, ended.stderr
    [one] = json.loads(ended.stdout)["refs"]
    assert "moved" == one["outcome"]
    status = Path(one["path"]).stat()
    assert (OWNER, OWNER) == (status.st_uid, status.st_gid)


def with_the_rights_of(service: str, machine: Machine, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command with no more of root's rights than a service leaves it."""
    capabilities = unit(service)["Service"]["CapabilityBoundingSet"].split()
    kept_rights = ",".join(f"+{one.removeprefix('CAP_').lower()}" for one in capabilities)
    argv = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept_rights}", "--inh-caps=-all"]
    command = [sys.executable, "-m", "underlay", "--config", os.fspath(machine.config), *arguments]
    return subprocess.run(argv + command, capture_output=True, text=True, check=False)


def belongs_to_another_user(machine: Machine) -> None:
    for path in (machine.instances, *machine.instances.rglob("*")):
        os.chown(path, OWNER, OWNER)
        os.chmod(path, 0o750 if path.is_dir() else 0o600)
