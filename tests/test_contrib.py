"""What is shipped for systemd: the units are sound, and a prune can do its work with no more than they leave it."""

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
OWNER = 64055  # libvirt-qemu's number on Debian; any other user's would do


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text(encoding="utf-8"))
    return parser


def test_the_service_runs_a_command_that_there_is() -> None:
    program, *arguments = shlex.split(unit("underlay-prune.service")["Service"]["ExecStart"])

    assert "underlay" == Path(program).name
    command = cli.get_command(click.Context(cli), arguments[0])
    assert command is not None
    command.parse_args(click.Context(command), arguments[1:])


def test_the_timer_starts_the_service() -> None:
    timer = unit("underlay-prune.timer")

    assert (UNITS / "underlay-prune.service").exists()
    assert "timers.target" == timer["Install"]["WantedBy"]
    assert not unit("underlay-prune.service").has_section("Install")  # the timer is what is enabled


@pytest.mark.component("systemd-analyze")
@pytest.mark.parametrize("name", ["underlay-prune.service", "underlay-prune.timer"])
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
        capabilities = unit("underlay-prune.service")["Service"]["CapabilityBoundingSet"].split()
        kept_rights = ",".join(f"+{one.removeprefix('CAP_').lower()}" for one in capabilities)
        argv = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept_rights}", "--inh-caps=-all"]
        command = [sys.executable, "-m", "underlay", "--config", os.fspath(machine.config), "prune", "--json"]
        ended = subprocess.run(argv + command, capture_output=True, text=True, check=False)

    assert 0 == ended.returncode, ended.stderr
    told = json.loads(ended.stdout)
    assert [str(gone)] == told["removed"]
    assert ("keep", ["open"]) == verdicts(told)["swap_512"]
    private = machine.base / ".underlay"
    assert {(OWNER, OWNER)} == {(path.stat().st_uid, path.stat().st_gid) for path in (private, *private.iterdir())}
    assert 0o2775 == (private / "leases").stat().st_mode & 0o7777


def belongs_to_another_user(machine: Machine) -> None:
    for path in (machine.instances, *machine.instances.rglob("*")):
        os.chown(path, OWNER, OWNER)
        os.chmod(path, 0o750 if path.is_dir() else 0o600)
