"""Lists of a request whose elements are counted first, and then read one by one: an empty element
takes two bytes on the wire and a hundred in memory."""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from logpipe.decoding import has_more_elements
from logpipe.event import NOT_DECODED
from logpipe.problems import Problem

MAX_REPEATED = 200_000
"""Elements of one list, also those of which no event is made."""

Array = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array"})]
"""An array of JSON that is not read yet."""

_decode = msgspec.json.Decoder(list[msgspec.Raw] | None).decode


def counted(bodies: Sequence[bytes]) -> Sequence[bytes]:
    """The same. Raises a 413 `Problem` for more than a request may have."""
    if len(bodies) > MAX_REPEATED:
        raise too_many()
    return bodies


def elements(raw: msgspec.Raw) -> Sequence[msgspec.Raw]:
    """The elements of an array of JSON, none of which is read yet; null has none. Raises a
    `Problem`: 413 for more than a request may have, 400 for what is not an array."""
    array = bytes(raw)
    if has_more_elements(array, MAX_REPEATED):
        raise too_many()
    try:
        return _decode(array) or ()
    except NOT_DECODED as error:
        raise Problem(400, f"A list cannot be read: {error}") from None


def too_many() -> Problem:
    """The 413 of more than `MAX_REPEATED`."""
    detail = f"A list of the request may have {MAX_REPEATED} elements."
    return Problem(413, detail, hits={"batch": 1})
