"""The command line: ``underlay COMMAND``. One module for each group of commands, imported when its command is run."""

from underlay.cli.main import main

__all__ = ["main"]
