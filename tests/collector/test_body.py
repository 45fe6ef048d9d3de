import asyncio
import gzip
import random
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from logpipe.collector.body import (
    DRAIN_BYTES,
    MAX_FRAMES,
    STEP_BYTES,
    drain,
    read_body,
    unpacked,
)
from logpipe.collector.inflight import Held, Inflight
from logpipe.problems import Problem
from tests.turns import Turns

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b'{"source":"a","message":"b"}\n' * 5_000
NOISE = random.Random(1).randbytes(300_000)
MIB = 1024 * 1024


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "identity": bytes,
}


def receiving(pieces: Iterable[bytes], *, cut: bool = False) -> Receive:
    """What a server gives for a body in these pieces; `cut` when the client leaves after them."""
    rest = list(pieces)

    async def receive() -> Message:
        if rest:
            return {"type": "http.request", "body": rest.pop(0), "more_body": bool(rest) or cut}
        return {"type": "http.disconnect"}

    return receive


def held() -> Held:
    """Of a process that has nothing else under way."""
    return Held(Inflight(MIB))


async def read(
    data: bytes, encoding: str = "", *, limit: int = 64 * MIB, step: int = 65_536, length: str = ""
) -> bytes:
    pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
    return await read_body(receiving(pieces), encoding, length, limit, held())


async def refusal(data: bytes, encoding: str = "", *, limit: int = 64 * MIB) -> Problem:
    with pytest.raises(Problem) as caught:
        await read(data, encoding, limit=limit)
    return caught.value


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("data", [b"", b"x", TEXT, NOISE], ids=["empty", "one", "text", "noise"])
@pytest.mark.parametrize("step", [997, 65_536])
async def test_a_body_comes_out_as_it_was_packed(coding: str, data: bytes, step: int) -> None:
    assert await read(PACKERS[coding](data), coding, step=step) == data


async def test_a_body_that_comes_byte_by_byte_is_unpacked() -> None:
    for coding, pack in PACKERS.items():
        assert await read(pack(TEXT[:500]), coding, step=1) == TEXT[:500]


async def test_deflate_without_its_header_is_unpacked_as_some_clients_send_it() -> None:
    for data in (b"", TEXT, NOISE):
        assert await read(raw_deflate(data), "deflate", step=1009) == data


async def test_gzip_of_several_members_is_one_body() -> None:
    packed = b"".join(gzip.compress(part) for part in (b"a", b"", TEXT, b"z"))
    for step in (1, 7, 65_536):
        assert await read(packed, "gzip", step=step) == b"a" + TEXT + b"z"


async def test_zstd_of_several_frames_is_one_body() -> None:
    packed = b"".join(zstd.compress(part) for part in (b"a", b"", TEXT, b"z"))
    for step in (1, 7, 65_536):
        assert await read(packed, "zstd", step=step) == b"a" + TEXT + b"z"


async def test_the_name_of_a_coding_is_read_in_any_case_and_with_spaces_around_it() -> None:
    assert await read(gzip.compress(b"x"), " GZip ") == b"x"


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=5),
    coding=st.sampled_from(["gzip", "zstd"]),
    step=st.integers(1, 4000),
)
async def test_any_parts_packed_one_by_one_and_cut_anywhere_come_out_whole(
    parts: list[bytes], coding: str, step: int
) -> None:
    packed = b"".join(map(PACKERS[coding], parts))
    assert await read(packed, coding, step=step) == b"".join(parts)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_a_body_that_ends_too_soon_is_refused(coding: str) -> None:
    whole = PACKERS[coding](NOISE[:2000])
    for size in (0, 1, 5, len(whole) // 2, len(whole) - 1):
        assert (await refusal(whole[:size], coding)).status == 400, size


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_damaged_data_is_refused_by_the_name_of_its_coding(coding: str) -> None:
    whole = PACKERS[coding](TEXT)
    middle = len(whole) // 2
    damaged = (
        b"not packed at all",
        whole[:middle] + bytes(40) + whole[middle + 40 :],
        whole + b"something behind it",
    )
    for data in damaged:
        problem = await refusal(data, coding)
        assert problem.status == 400
        assert coding in problem.detail or "middle" in problem.detail


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=300), coding=st.sampled_from(["gzip", "deflate", "zstd"]))
async def test_no_bytes_whatever_raise_anything_but_a_problem(data: bytes, coding: str) -> None:
    prefix = PACKERS[coding](b"x" * 50)
    for body in (data, prefix + data, prefix[:-3] + data):
        try:
            await read(body, coding)
        except Problem as problem:
            assert problem.status == 400  # noqa: PT017 - either outcome is right


async def test_an_unknown_coding_is_refused_with_those_that_are_known() -> None:
    for coding in ("br", "gzip, gzip", "compress", "\x1b[31m", "x" * 5000):
        problem = await refusal(b"x", coding)
        assert problem.status == 415
        assert "zstd" in problem.headers["Accept-Encoding"]
        assert "\x1b" not in problem.detail
        assert len(problem.detail) < 500


@pytest.mark.parametrize("coding", PACKERS)
async def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(coding: str) -> None:
    for data in (b"x" * 200_000, NOISE[:200_000]):
        assert await read(PACKERS[coding](data), coding, limit=200_000) == data
        problem = await refusal(PACKERS[coding](data + b"x"), coding, limit=200_000)
        assert problem.status == 413
        assert problem.members["limit"] == 200_000


async def test_a_content_length_over_the_limit_is_refused_before_the_body_is_read() -> None:
    async def never() -> Message:
        raise AssertionError("the body was read")

    for length in ("101", "9" * 18, "9" * 5000):
        with pytest.raises(Problem) as caught:
            await read_body(never, "", length, 100, held())
        assert caught.value.status == 413


@pytest.mark.parametrize("length", ["", "-1", "x", "²", "1.5", "0" * 30 + "7"])
async def test_a_content_length_that_says_nothing_is_left_to_the_bytes(length: str) -> None:
    assert await read(b"1234567", limit=100, length=length) == b"1234567"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_a_bomb_is_noticed_while_it_is_unpacked(coding: str) -> None:
    bomb = PACKERS[coding](bytes(64 * MIB))
    tracemalloc.start()
    try:
        problem = await refusal(bomb, coding, limit=MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert problem.status == 413
    assert peak < MIB + 8 * STEP_BYTES


async def test_a_zstd_frame_cannot_claim_more_memory_than_a_decoder_must_have() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    packer = zstd.ZstdCompressor(options=options)
    frame = packer.compress(NOISE) + packer.flush()
    assert (await refusal(frame, "zstd")).status == 400


@pytest.mark.parametrize(
    ("coding", "begin", "nothing"),
    [
        ("gzip", b"", gzip.compress(b"")),
        ("deflate", zlib.compress(b"")[:2], b"\0\0\0\xff\xff"),
        ("zstd", b"", zstd.compress(b"")),
    ],
    ids=["gzip", "deflate", "zstd"],
)
async def test_packed_data_that_never_gives_a_byte_does_not_go_on_for_ever(
    coding: str, begin: bytes, nothing: bytes
) -> None:
    receive = receiving([begin, *[nothing * (65_536 // len(nothing))] * 6])
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as caught:
            await read_body(receive, coding, "", MIB // 4, held())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < MIB // 2


async def test_a_client_that_leaves_in_the_middle_is_no_end_of_the_body() -> None:
    for encoding, data in (("", b"half"), ("gzip", gzip.compress(b"half"))):
        with pytest.raises(ClientDisconnect):
            await read_body(receiving([data], cut=True), encoding, "", 100, held())


async def test_a_refused_body_is_read_to_its_end() -> None:
    pieces = [b"x" * 1000] * 50
    receive = receiving(pieces)
    await drain(receive)
    assert (await receive())["type"] == "http.disconnect"


async def test_a_refused_body_is_not_read_for_ever() -> None:
    seen = 0

    async def endless() -> Message:
        nonlocal seen
        seen += MIB
        return {"type": "http.request", "body": bytes(MIB), "more_body": True}

    await drain(endless)
    assert seen <= DRAIN_BYTES + MIB


async def test_a_refused_body_that_stops_coming_is_waited_for_only_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("logpipe.collector.body.DRAIN_S", 0.05)
    asked = 0

    async def silent() -> Message:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    await drain(silent)
    assert asked == 1


def tiny_frames() -> dict[str, tuple[str, bytes]]:
    """What a frame of few bytes can be: a name, its coding, the frame."""
    window = b"\x28\xb5\x2f\xfd\x00\x68" + b"\x09\x00\x00x"  # one byte, in a window of 8 MiB
    return {
        "empty gzip": ("gzip", gzip.compress(b"")),
        "one byte of gzip": ("gzip", gzip.compress(b"x")),
        "empty deflate": ("deflate", zlib.compress(b"")),
        "empty raw deflate": ("deflate", raw_deflate(b"")),
        "empty zstd": ("zstd", zstd.compress(b"")),
        "one byte of zstd": ("zstd", zstd.compress(b"x")),
        "a large window of zstd": ("zstd", window),
        "skippable zstd": ("zstd", b"\x50\x2a\x4d\x18\x00\x00\x00\x00"),
    }


@pytest.mark.parametrize("name", tiny_frames())
async def test_so_many_frames_are_read_and_one_more_is_not(name: str) -> None:
    coding, frame = tiny_frames()[name]
    for step in (1_000, 65_536):
        assert len(await read(frame * MAX_FRAMES, coding, step=step)) in (0, MAX_FRAMES)
    problem = await refusal(frame * (MAX_FRAMES + 1), coding)
    assert problem.status == 413
    assert problem.hits == {"body_frames": 1}
    assert f"{MAX_FRAMES} frames" in problem.detail


def bomb(coding: str, size: int) -> bytes:
    return PACKERS[coding](bytes(size))


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", bomb("gzip", 16 * MIB)),
        ("deflate", bomb("deflate", 16 * MIB)),
        ("gzip", gzip.compress(TEXT * 100)),
        ("zstd", zstd.compress(NOISE * 50)),
        ("zstd", zstd.compress(b"x") * MAX_FRAMES),
    ],
    ids=["bomb of gzip", "bomb of deflate", "text in gzip", "noise in zstd", "tiny frames"],
)
async def test_while_a_body_is_unpacked_everything_else_goes_on(coding: str, body: bytes) -> None:
    turns = Turns()
    turning = asyncio.create_task(turns.run())
    began = time.thread_time()
    await read(body, coding, limit=16 * MIB, step=256 * 1024)
    took_s = time.thread_time() - began
    turning.cancel()
    assert turns.longest_s < max(0.05, took_s / 2)
    assert turns.count >= max(2, took_s / 0.02)


async def test_many_bodies_are_unpacked_one_step_at_a_time() -> None:
    """Their steps do not add up: beside twenty the loop turns as often as beside one."""
    body, inflight = bomb("gzip", 8 * MIB), Inflight(1024 * MIB)
    turns = Turns()

    async def unpack() -> None:
        held = Held(inflight)
        with held:
            assert len(await unpacked(body, "gzip", 16 * MIB, held)) == 8 * MIB

    turning = asyncio.create_task(turns.run())
    await asyncio.gather(*(unpack() for _ in range(20)))
    turning.cancel()
    assert turns.count > 40
    assert not inflight.seat.locked()


async def test_a_body_that_is_refused_while_unpacked_gives_its_seat_back() -> None:
    inflight = Inflight(1024 * MIB)
    held = Held(inflight)
    damaged = bomb("gzip", 16 * MIB)[:-8] + bytes(8)
    for data, limit in ((bomb("gzip", 16 * MIB), 15 * MIB), (damaged, 16 * MIB)):
        with held, pytest.raises(Problem):
            await unpacked(data, "gzip", limit, held)
        assert not inflight.seat.locked()
        assert inflight.bytes == 0
