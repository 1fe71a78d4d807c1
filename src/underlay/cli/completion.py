"""``underlay completion``."""

import click
from click.shell_completion import get_completion_class

from underlay.cli.output import writing


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    underlay completion bash > /etc/bash_completion.d/underlay
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root()
    with writing():
        click.echo(kind(root.command, {}, "underlay", "_UNDERLAY_COMPLETE").source())
