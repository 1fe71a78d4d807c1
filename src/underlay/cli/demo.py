"""``underlay demo``."""

import click


@click.command()
@click.argument("url", required=False)
def demo(url: str | None) -> None:
    """Run the main job in a temporary directory: fetch, three disks, list, show, du, boot.

    Without a URL it serves a small bootable image of its own over loopback HTTP. Needs qemu-img and qemu-system-x86_64.
    """
    from underlay.testing.demo import run_demo

    run_demo(url)
