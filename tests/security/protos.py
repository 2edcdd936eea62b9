"""Every message with one field at an extreme, made from the descriptors: new fields join by themselves.

It knows protobuf's description of messages, and nothing of what is answered.
"""

import math
import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

INTEGERS = {
    Field.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    Field.CPPTYPE_UINT32: (0, 1, 2**31 - 1, 2**31, 2**32 - 1),
    Field.CPPTYPE_INT64: (0, 1, -1, 2**63 - 1, -(2**63)),
    Field.CPPTYPE_UINT64: (0, 1, 2**63, 2**64 - 1),
    Field.CPPTYPE_ENUM: (0, 1, 99, -1, 2**31 - 1),
}
NUMBERS = (0.0, -0.0, 1.5, -1.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf)
TEXTS = ("", "x", "\x00", "\n", "😀" * 50, "x" * 10_000, "../../etc/passwd", "{", "<|im_end|>", "\u202e", "9" * 400)
BYTES = (b"", b"\x00", b"abc", b"\xff" * 4, struct.pack("<3I", 1, 2, 3), bytes(40_000))
MANY = 3000


def extremes(message: Message, depth: int = 6) -> Iterator[tuple[str, Message]]:
    """(where, copy of `message` with one field at an extreme)."""
    for field in message.DESCRIPTOR.fields:
        for where, change in _changes(field, depth):
            changed = type(message)()
            changed.CopyFrom(message)
            change(changed)
            yield f"{field.name}{where}", changed


def _changes(field: Field, depth: int) -> Iterator[tuple[str, Any]]:
    name = field.name
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from _map_changes(field)
    elif field.cpp_type == Field.CPPTYPE_MESSAGE:
        yield from _message_changes(field, depth)
    elif field.is_repeated:
        values = _values(field)
        yield "", lambda message: message.ClearField(name)
        for value in values:
            yield "[]", lambda message, value=value: getattr(message, name).append(value)
        yield "[...]", lambda message: getattr(message, name).extend([values[1]] * MANY)
    else:
        yield "", lambda message: message.ClearField(name)
        for value in _values(field):
            yield "", lambda message, value=value: setattr(message, name, value)


def _message_changes(field: Field, depth: int) -> Iterator[tuple[str, Any]]:
    name = field.name
    yield "", lambda message: message.ClearField(name)
    if not depth:
        return
    if field.is_repeated:
        yield "[...]", lambda message: [getattr(message, name).add() for _ in range(MANY)]
        yield "[]", lambda message: getattr(message, name).add()
    else:
        yield "{}", lambda message: getattr(message, name).SetInParent()
    for inner in field.message_type.fields:
        for where, change in _changes(inner, depth - 1):

            def within(message: Any, change: Any = change) -> None:
                change(_one(getattr(message, name)) if field.is_repeated else getattr(message, name))

            yield f".{inner.name}{where}", within


def _one(rows: Any) -> Any:
    return rows[0] if rows else rows.add()


def _map_changes(field: Field) -> Iterator[tuple[str, Any]]:
    name = field.name
    key_field, value_field = field.message_type.fields
    for key in _values(key_field):
        yield "{}", lambda message, key=key: getattr(message, name).update({key: _values(value_field)[0]})
    for value in _values(value_field):
        yield "{}", lambda message, value=value: getattr(message, name).update({_values(key_field)[1]: value})
    if key_field.cpp_type == Field.CPPTYPE_UINT32:
        yield "{...}", lambda message: getattr(message, name).update(dict.fromkeys(range(MANY), _values(value_field)[0]))


def _values(field: Field) -> tuple[Any, ...]:
    match field.cpp_type:
        case Field.CPPTYPE_DOUBLE | Field.CPPTYPE_FLOAT:
            return NUMBERS
        case Field.CPPTYPE_BOOL:
            return (True, False)
        case Field.CPPTYPE_STRING:
            return BYTES if field.type == Field.TYPE_BYTES else TEXTS
        case _:
            return INTEGERS[field.cpp_type]
