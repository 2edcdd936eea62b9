"""Structural tags: free text in which whatever begins with a trigger must go on as one of several tags, as a Lark grammar.

The shape is vLLM's first one, {"structures": [{"begin", "schema", "end"}], "triggers": [...]}. It knows nothing of bodies.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.errors import InvalidRequest

MAX_TAGS = 128


class Tag(msgspec.Struct, kw_only=True):
    """What stands between `begin` and `end` satisfies the schema."""

    begin: str
    schema: dict[str, Any]
    end: str


class Tags(msgspec.Struct, kw_only=True):
    """Which tags there are, and what announces one."""

    structures: list[Tag]
    triggers: list[str]
    type: str = "structural_tag"


def lark_of_tags(given: Mapping[str, Any], name: str) -> str:
    """The grammar. Raises InvalidRequest, naming the field `name`, for what is no structural tag."""
    if "format" in given:
        raise _wrong(name, "'format' is not supported; give 'structures' and 'triggers'")
    try:
        tags = msgspec.convert(given, Tags)
    except msgspec.ValidationError as error:
        raise _wrong(name, str(error).replace("`", "'")) from None
    if not 1 <= len(tags.structures) <= MAX_TAGS or not tags.triggers:
        raise _wrong(name, f"needs 1 to {MAX_TAGS} structures, and triggers")
    rules = []
    for number, tag in enumerate(tags.structures):
        trigger = max((each for each in tags.triggers if each and tag.begin.startswith(each)), key=len, default=None)
        if trigger is None:
            raise _wrong(name, f"structures[{number}].begin must begin with one of the triggers")
        rest, end = tag.begin.removeprefix(trigger), tag.end
        parts = [json.dumps(rest)] * bool(rest) + ["%json " + json.dumps(tag.schema)] + [json.dumps(end)] * bool(end)
        # Lazy: the text before a trigger ends at the first one.
        rules += [f"trigger_{number}[lazy]: TEXT {json.dumps(trigger)}", f"tag_{number}: trigger_{number} {' '.join(parts)}"]
    names = " | ".join(f"tag_{number}" for number in range(len(tags.structures)))
    return "\n".join([f"start: ({names})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/", *rules])


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{name}': {what}.", param=name, code="invalid_value")
