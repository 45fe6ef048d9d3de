"""What is done to good bytes: pure functions of a source of chance and the bytes."""

import gzip
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from random import Random

import cramjam

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Mutation = Callable[[Random, bytes], bytes]

NUMBERS = (
    b"0", b"-0", b"-1", b"1e308", b"1e999", b"-1e999", b"1E-400", b"NaN", b"Infinity", b"0.1e1",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"1" * 400, b"00",
    b"253402300800000", b"-62135596800001", b"1.7976931348623157e309", b"0x10", b"1_000", b"+1",
    b"99999999999999999999.5", b"1" * 5000,
)  # fmt: skip
VALUES = (
    b"null", b"true", b"[]", b"{}", b'""', b'"x"', b"[[]]", b'{"":{}}', b'{"a":1,"a":2}', b"[null]",
    b'"\\u0000"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"1e400"', b'"NaN"', b'"%b"' % (b"x" * 9000),
    b'"2024-02-30T25:61:61Z"', b'"\xf0\x9f\x8e\x89"', b'"\\u2028"', b'{"$ref":"#"}', b"[0,0,0,0]",
)  # fmt: skip
NOT_UTF8 = (
    b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80", b"\xfe\xff",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\x1b[2J", b"\x7f",
)  # fmt: skip
DEPTHS = (2, 17, 65, 101, 513, 1_100, 20_000)

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+|\bnull\b|\btrue\b|\{\}|\[\]')
_MEMBER = re.compile(rb'"(?:[^"\\]|\\.)*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|-?\d+|null|true|false)')
_KEY = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:')


def _cut(random: Random, size: int) -> tuple[int, int]:
    start = random.randint(0, size)
    return start, min(size, start + random.choice((0, 1, 2, 4, 16, 200)))


def flipped(random: Random, data: bytes) -> bytes:
    """Some bits of another value."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def truncated(random: Random, data: bytes) -> bytes:
    """The beginning alone, or the end."""
    at = random.randint(0, len(data))
    return data[:at] if random.random() < 0.7 else data[at:]


def replaced(random: Random, data: bytes) -> bytes:
    """Some bytes by others, or by none."""
    start, end = _cut(random, len(data))
    return data[:start] + random.randbytes(random.choice((0, 1, 3, 9))) + data[end:]


def repeated(random: Random, data: bytes) -> bytes:
    """A piece of it, or all of it, more than once."""
    start, end = _cut(random, len(data)) if random.random() < 0.7 else (0, len(data))
    times = min(random.choice((2, 3, 50, 3_000)), 300_000 // max(1, end - start))
    return data[:start] + data[start:end] * times + data[end:]


def _each(random: Random, data: bytes, pattern: re.Pattern[bytes], by: Sequence[bytes]) -> bytes:
    found = [match.span() for match in pattern.finditer(data[:20_000])]
    if not found:
        return data + random.choice(by)
    start, end = random.choice(found)
    return data[:start] + random.choice(by) + data[end:]


def numbered(random: Random, data: bytes) -> bytes:
    """A number that few can hold."""
    return _each(random, data, _NUMBER, NUMBERS)


def revalued(random: Random, data: bytes) -> bytes:
    """Another value where one was."""
    return _each(random, data, _VALUE, VALUES)


def misencoded(random: Random, data: bytes) -> bytes:
    """What is not UTF-8, or no text."""
    at = random.randint(0, len(data))
    return data[:at] + random.choice(NOT_UTF8) + data[at:]


def doubled(random: Random, data: bytes) -> bytes:
    """A member that an object has twice, the second with another value."""
    found = [match.span() for match in _MEMBER.finditer(data[:20_000])]
    if not found:
        return data + data
    start, end = random.choice(found)
    member = data[start:end]
    other = random.choice((member, _KEY.match(member)[0] + random.choice(VALUES)))  # type: ignore[index]
    return data[:start] + member + b"," + other + data[end:]


def nested(random: Random, data: bytes) -> bytes:
    """A value within a great many others."""
    depth = random.choice(DEPTHS)
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]")))
    if random.random() < 0.1:
        closing = b""  # none of them ends
    deep = opening * depth + random.choice(VALUES) + closing * depth
    if random.random() < 0.3:
        return opening * depth + data + closing * depth
    return _each(random, data, _VALUE, (deep,))


def renamed(random: Random, data: bytes) -> bytes:
    """A member under the name of another, or under none that anybody knows."""
    names = [match[1] for match in _KEY.finditer(data[:20_000])]
    if not names:
        return data
    other = random.choice((*names, b"", b"a.b", b"__proto__", b"x" * 300, b"\\u0000"))
    return data.replace(b'"%b"' % random.choice(names), b'"%b"' % other, random.choice((1, -1)))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def fielded(random: Random, data: bytes) -> bytes:
    """A field of protobuf that claims something: a length, a group, a number without end."""
    kind = random.randrange(8)
    tag = _varint(random.choice((1, 2, 3, 5, 15, 16, 2**28)) << 3 | kind)
    claimed = random.choice((0, 1, 5, 127, 2**14, 2**31 - 1, 2**32, 2**63, 2**64 - 1))
    filler = random.choice((b"", b"\x00" * 8, b"\xff" * 11, random.randbytes(5), data[:100]))
    at = random.choice((0, len(data), random.randint(0, len(data))))
    times = random.choice((1, 1, 1, 120, 4_000))
    return data[:at] + (tag + _varint(claimed) + filler)[:200] * times + data[at:]


def withdrawn(random: Random, data: bytes) -> bytes:
    """Messages in messages in messages of protobuf, each claiming the rest."""
    for _ in range(random.choice((1, 3, 70, 130))):
        data = _varint(random.choice((1, 1, 5, 6)) << 3 | 2) + _varint(len(data)) + data
    return data


MUTATIONS: Sequence[Mutation] = (
    flipped, truncated, replaced, repeated, numbered, revalued, misencoded, doubled, nested,
    renamed, fielded, withdrawn,
)  # fmt: skip

_BOMBS = (b"\0", b"[", b" ", b'{"message":"x"}\n', b"0,")


def unfolded(random: Random) -> bytes:
    """Little when it is packed, and a lot when it is not."""
    piece = random.choice(_BOMBS)
    return piece * (random.choice((100_000, 400_000, 3_000_000)) // len(piece))


def _deflated(data: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "x-gzip": lambda data: gzip.compress(data, 1, mtime=0) + gzip.compress(b"", 1, mtime=0),
    "deflate": lambda data: _deflated(data, 15),
    "Deflate": lambda data: _deflated(data, -15),
    "zstd": lambda data: zstd.compress(data, 1),
    "ZSTD": lambda data: zstd.compress(data[:9], 1) + zstd.compress(data[9:], 1),
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
    "identity": lambda data: data,
}
"""By the name that Content-Encoding has for it."""

MISNAMED = (
    "gzip, zstd", "gzip,gzip", "identity, gzip", "br", "compress", "", " gzip ", "gzip;q=1", ",",
    "GZIP", "x" * 500, "chunked", "\xff", "snappy, gzip", "deflate\tgzip",
)  # fmt: skip


def packed(random: Random, data: bytes) -> tuple[str, bytes]:
    """Content-Encoding and the body in it: rightly packed, packed otherwise than is said, packed
    twice, or damaged."""
    name = random.choice(list(PACKERS))
    body = PACKERS[name](unfolded(random) if random.random() < 0.03 else data)
    how = random.random()
    if how < 0.15:
        body = PACKERS[random.choice(list(PACKERS))](body)
    if 0.1 < how < 0.4:
        body = random.choice((flipped, truncated, replaced, repeated))(random, body)
    return (random.choice((*MISNAMED, *PACKERS)) if how > 0.85 else name), body
