"""Bytes into lines: the same however they come, and never more of one than its bound."""

from hypothesis import given
from hypothesis import strategies as st

from logpipe.send.lines import Line, Splitter

LIMIT = 8
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b"\x00\xff", b"", b"long line "])
TEXTS = st.lists(ENDS, max_size=40).map(b"".join)


def lines_of(pieces: list[bytes]) -> tuple[list[Line], list[int]]:
    """The lines of bytes that come in these pieces, and the offsets after each."""
    splitter = Splitter(LIMIT)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    lines += splitter.rest()
    offsets, at = [], 0
    for line in lines:
        at += line.size
        offsets.append(at)
    return lines, offsets


@given(TEXTS, st.data())
def test_any_split_of_bytes_into_chunks_gives_the_same_lines_and_offsets(
    text: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert lines_of(pieces) == lines_of([text])


@given(TEXTS)
def test_the_lines_are_those_between_line_ends_cut_at_the_limit(text: bytes) -> None:
    lines, offsets = lines_of([text])
    whole = text.split(b"\n")
    wanted = whole[:-1] if whole[-1] == b"" else whole
    assert [line.text for line in lines] == [each.removesuffix(b"\r")[:LIMIT] for each in wanted]
    assert (offsets[-1] if offsets else 0) == len(text)


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_what_is_pending_is_what_no_line_has_taken(pieces: list[bytes]) -> None:
    splitter = Splitter(LIMIT)
    fed = taken = 0
    for piece in pieces:
        taken += sum(line.size for line in splitter.feed(piece))
        fed += len(piece)
        assert splitter.pending == fed - taken
        assert len(splitter._begun) <= LIMIT + 1


def test_a_line_of_the_limit_is_whole_and_one_byte_more_is_cut() -> None:
    assert lines_of([b"x" * LIMIT + b"\r\n"])[0] == [Line(b"x" * LIMIT, LIMIT + 2)]
    assert lines_of([b"x" * LIMIT + b"y\n"])[0] == [Line(b"x" * LIMIT, LIMIT + 2)]
