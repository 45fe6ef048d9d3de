"""`logpipe.decoding` for tests that want the events as they are decoded."""

import sys

from logpipe import decoding
from logpipe.decoding import Refusal
from logpipe.event import Event


def decode_json(body: bytes, most: int = sys.maxsize) -> tuple[list[Event], list[Refusal], bool]:
    return decoding.decode_json(body, list, most)


def decode_ndjson(body: bytes, most: int = sys.maxsize) -> tuple[list[Event], list[Refusal]]:
    return decoding.decode_ndjson(body, list, most)
