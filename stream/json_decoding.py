"""JSON that anybody may have written, decoded with one kind of error."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode_json(decoder: msgspec.json.Decoder[T], text: bytes | str) -> T:
    """What `text` says.

    Raises
    ------
    msgspec.DecodeError
        If it is no such thing; also where msgspec itself raises UnicodeDecodeError or RecursionError.
    """
    try:
        return decoder.decode(text)
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
