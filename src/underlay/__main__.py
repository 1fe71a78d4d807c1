"""``python -m underlay``."""

from underlay.cli import main

main()
