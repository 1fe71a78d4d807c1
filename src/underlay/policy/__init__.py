"""Every decision, pure: facts in, a verdict with its reasons out. No I/O, no clock."""
