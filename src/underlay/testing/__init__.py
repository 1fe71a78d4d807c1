"""What the project tests itself with, shipped so that others can test against the same contracts."""
