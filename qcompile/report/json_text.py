"""Results as JSON text: fields in the order of the schema, the same text for the same result."""

import json

from qcompile.report.section import Section


def json_text(result: Section) -> str:
    """Return the JSON of a report or another command's answer, ending in a newline."""
    body = result.model_dump(mode="json")
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
