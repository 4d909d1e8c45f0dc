"""Messages on the wire put together from parts, so that large arrays are copied once.

Setting an array into a message, that message into another and serializing them copies it each
time. On the wire a sub-message, or bytes, is its field's key, its length, and its content.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

Parts = Sequence[bytes | memoryview]
"""What follows one another on the wire; every part has one dimension, of bytes."""


class Field:
    """A field of a message type that holds a message or bytes, once or repeatedly."""

    def __init__(self, message: type[Message], name: str) -> None:
        number = message.DESCRIPTOR.fields_by_name[name].number
        self._key = varint(number << 3 | 2)

    def of(self, content: Parts) -> list[bytes | memoryview]:
        """The field with a content, also where that is empty."""
        return [self._key, varint(sum(map(len, content))), *content]


class NumberField:
    """A field of a message type that holds one number that is not negative."""

    def __init__(self, message: type[Message], name: str) -> None:
        self._key = varint(message.DESCRIPTOR.fields_by_name[name].number << 3)

    def of(self, value: int) -> list[bytes | memoryview]:
        """The field with a value; 0 is what it has without being written."""
        return [self._key, varint(value)] if value else []


def joined(parts: Parts) -> bytes:
    """The parts as one."""
    return b"".join(parts)


def varint(value: int) -> bytes:
    """A number that is not negative, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
