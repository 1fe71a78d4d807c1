"""The JSON schemas of the documentation, and whether an answer keeps to one of them."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
from referencing import Registry
from referencing.jsonschema import DRAFT202012

SCHEMAS = Path(__file__).parents[1] / "docs" / "reference" / "schemas"


def keeps(name: str, answer: Any) -> None:
    """Assert that an answer keeps to a schema."""
    validator(name).validate(answer)


def validator(name: str) -> Any:
    """What tells whether an answer keeps to a schema."""
    registry: Registry[Any] = Registry()
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        registry = registry.with_resource(path.name, DRAFT202012.create_resource(schema))
    formats = jsonschema.FormatChecker(formats=())
    formats.checks("date-time")(_is_utc)
    return jsonschema.Draft202012Validator({"$ref": f"{name}.json"}, registry=registry, format_checker=formats)


def _is_utc(text: object) -> bool:
    if not isinstance(text, str):
        return True
    offset = datetime.fromisoformat(text).utcoffset()
    return offset is not None and not offset
