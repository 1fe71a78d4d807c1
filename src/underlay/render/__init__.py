"""What people and programs see: tables, trees and JSON of all that commands answer; events and progress.

Everything printable is made here; only the command line prints it. The names are imported on first use, because what is drawn
by rich costs more to import than to draw.
"""

from typing import TYPE_CHECKING

from underlay import later

if TYPE_CHECKING:
    from underlay.render.answers import (
        attachment_json,
        backend_json,
        disk_json,
        finding_json,
        image_json,
        json_text,
        lease_json,
        problem_json,
    )
    from underlay.render.following import refreshed_json, refreshed_table
    from underlay.render.lines import (
        Display,
        LineProgress,
        ago,
        attachment_line,
        disk_line,
        event_json,
        event_line,
        progress_event,
        progress_line,
        released_text,
        short_name,
        utc_now,
    )
    from underlay.render.progress import TerminalProgress
    from underlay.render.scrub import scrub_json, scrub_plan_json, scrub_plan_tables, scrub_tables
    from underlay.render.tables import console
    from underlay.render.things import (
        backend_table,
        disk_table,
        findings_table,
        image_table,
        image_tree,
        lease_table,
        problem_text,
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
    from underlay.render.vms import unreadable_vm_json, unreadable_vm_text, vm_facts, vm_json, vm_line, vm_table

__all__ = [
    "Display",
    "LineProgress",
    "TerminalProgress",
    "ago",
    "attachment_json",
    "attachment_line",
    "backend_json",
    "backend_table",
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
    "scrub_json",
    "scrub_plan_json",
    "scrub_plan_tables",
    "scrub_tables",
    "short_name",
    "unreadable_vm_json",
    "unreadable_vm_text",
    "utc_now",
    "verdict_json",
    "vm_facts",
    "vm_json",
    "vm_line",
    "vm_table",
]

__getattr__, __dir__ = later.exports(
    __name__,
    {
        "underlay.render.answers": (
            "attachment_json",
            "backend_json",
            "disk_json",
            "finding_json",
            "image_json",
            "json_text",
            "lease_json",
            "problem_json",
        ),
        "underlay.render.following": (
            "refreshed_json",
            "refreshed_table",
        ),
        "underlay.render.lines": (
            "Display",
            "LineProgress",
            "ago",
            "attachment_line",
            "disk_line",
            "event_json",
            "event_line",
            "progress_event",
            "progress_line",
            "released_text",
            "short_name",
            "utc_now",
        ),
        "underlay.render.progress": ("TerminalProgress",),
        "underlay.render.scrub": ("scrub_json", "scrub_plan_json", "scrub_plan_tables", "scrub_tables"),
        "underlay.render.tables": ("console",),
        "underlay.render.things": (
            "backend_table",
            "disk_table",
            "findings_table",
            "image_table",
            "image_tree",
            "lease_table",
            "problem_text",
        ),
        "underlay.render.usage": (
            "explanation_json",
            "explanation_tree",
            "footprint_table",
            "hosts_table",
            "image_footprint_table",
            "plan_json",
            "plan_tables",
            "precached_json",
            "precached_table",
            "verdict_json",
        ),
        "underlay.render.vms": ("unreadable_vm_json", "unreadable_vm_text", "vm_facts", "vm_json", "vm_line", "vm_table"),
    },
)
