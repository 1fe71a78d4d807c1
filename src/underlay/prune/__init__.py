"""Observe, decide, apply: who needs the files of caches, which of them go, and their removal.

`observation` looks and changes nothing; what it saw becomes a plan by `policy.prune`. `removal` applies a plan, and looks at
every fact again before it does.
"""
