"""What people and programs see: tables, trees and JSON of all that commands answer; events and progress.

Everything printable is made here; only the command line prints it.
"""

from underlay.render.following import refreshed_json, refreshed_table
from underlay.render.progress import (
    Display,
    LineProgress,
    TerminalProgress,
    event_json,
    event_line,
    progress_event,
    progress_line,
)
from underlay.render.tables import ago, console, json_text, short_name, utc_now
from underlay.render.things import (
    disk_json,
    disk_line,
    disk_table,
    finding_json,
    findings_table,
    image_json,
    image_table,
    image_tree,
    lease_json,
    lease_table,
    problem_json,
    problem_text,
    released_text,
)
from underlay.render.usage import (
    explanation_json,
    explanation_tree,
    footprint_table,
    hosts_table,
    image_footprint_table,
    plan_json,
    plan_tables,
    precached_json,
    precached_table,
    verdict_json,
)

__all__ = [
    "Display",
    "LineProgress",
    "TerminalProgress",
    "ago",
    "console",
    "disk_json",
    "disk_line",
    "disk_table",
    "event_json",
    "event_line",
    "explanation_json",
    "explanation_tree",
    "finding_json",
    "findings_table",
    "footprint_table",
    "hosts_table",
    "image_footprint_table",
    "image_json",
    "image_table",
    "image_tree",
    "json_text",
    "lease_json",
    "lease_table",
    "plan_json",
    "plan_tables",
    "precached_json",
    "precached_table",
    "problem_json",
    "problem_text",
    "progress_event",
    "progress_line",
    "refreshed_json",
    "refreshed_table",
    "released_text",
    "short_name",
    "utc_now",
    "verdict_json",
]
