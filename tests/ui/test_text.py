"""Log text as HTML: whole, harmless, in colour and marked."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logpipe.filters import Filter
from logpipe.ui.text import MAX_SGR, MAX_STYLES, message, shown, styled
from tests.hostile import HOSTILE
from tests.ui.pieces import Seen

SGR = re.compile(r"\x1b\[[0-9;]{0,48}m")
CLASSES = re.compile(
    r"(?:(?:bold|dim|italic|underline|inverse|strike|[fb]g(?:\d|1[0-5]))(?: |$))+|hidden"
)

coloured = st.lists(
    st.one_of(
        st.text(),
        st.text("ab é\n\r\x1b[;m<&", max_size=8),
        st.lists(
            st.integers(0, 110) | st.sampled_from([38, 48, 2, 5, 255, 999999]), max_size=6
        ).map(lambda codes: f"\x1b[{';'.join(map(str, codes))}m"),
        st.sampled_from(HOSTILE),
    ),
    max_size=12,
).map("".join)


@given(st.text())
@example("\x7f" * 3 + "a\r\n\u200b\u202e")
def test_any_text_is_shown_whole_and_can_be_told_from_its_escapes(text: str) -> None:
    assert Seen(shown(text)).original == text.replace("\r\n", "\n")


@given(st.text())
def test_what_hides_or_reorders_text_is_never_passed_on(text: str) -> None:
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u202a-\u202e]", shown(text)) is None
    shown(text).encode()


@given(coloured, st.sampled_from([None, "a", "b OR é", "/./", '"<" OR "&"']))
@example("\r\r\n", None)
@example("\r\x1b[1m\r\n", "/./")
def test_a_message_keeps_its_text_and_gets_marks_and_known_classes_alone(
    text: str, query: str | None
) -> None:
    html = message(text, Filter(query or "").highlight)
    seen = Seen(html)
    assert seen.original == SGR.sub("", text.replace("\r\n", "\n"))
    for tag, attributes in seen.elements:
        if tag == "mark":
            assert attributes == {}
        else:
            assert tag == "span"
            assert list(attributes) == ["class"]
            assert CLASSES.fullmatch(attributes["class"] or "")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_message_makes_no_element_of_its_own(text: str) -> None:
    tags = {tag for tag, _ in Seen(message(text, Filter("alert OR script").highlight)).elements}
    assert tags <= {"span", "mark"}


@pytest.mark.parametrize(
    ("codes", "classes"),
    [
        ("1", "bold"),
        ("2;3;4;7;9", "dim inverse italic strike underline"),
        ("1;22", ""),
        ("3;23;4;24;7;27;9;29", ""),
        ("31", "fg1"),
        ("97", "fg15"),
        ("41", "bg1"),
        ("107", "bg15"),
        ("31;39", ""),
        ("44;49", ""),
        ("31;42", "bg2 fg1"),
        ("31;0", ""),
        ("31;", ""),
        ("", ""),
        ("38;5;9", "fg9"),
        ("48;5;196", "bg9"),
        ("38;5;21", "fg12"),
        ("38;5;16", "fg0"),
        ("38;5;232", "fg0"),
        ("38;5;244", "fg7"),
        ("38;5;255", "fg15"),
        ("38;5;99999", "fg15"),
        ("38;2;255;0;0", "fg9"),
        ("38;2;0;120;0", "fg2"),
        ("38;2;0;0;0", "fg0"),
        ("48;2;255;255;255", "bg15"),
        ("38;2;1", "bold"),
        ("38;5", ""),
        ("38", ""),
        ("38;7;1", "bold"),
        ("5;8;21;53;200", ""),
    ],
)
def test_colours_and_attributes_of_a_terminal_become_classes(codes: str, classes: str) -> None:
    text, styles = styled(f"a\x1b[{codes}mb")
    assert (text, styles) == ("ab", [(1, classes)])
    html = f'a<span class="{classes}">b</span>' if classes else "ab"
    assert message(f"a\x1b[{codes}mb") == html


def test_a_style_lasts_until_it_is_taken_back() -> None:
    html = message("\x1b[1mone\x1b[31m two\x1b[0m three")
    assert html == '<span class="bold">one</span><span class="bold fg1"> two</span> three'


def test_what_is_found_is_marked_across_colours() -> None:
    html = message("con\x1b[31mnection\x1b[0m lost", Filter("connection").highlight)
    assert html == ('<mark>con</mark><mark><span class="fg1">nection</span></mark> lost')


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x1b]0;title\x07", "\x1b[31", "\x1b[31;1H", "\x1b(B", "\x9b31m"]
)
def test_what_a_terminal_would_obey_besides_colours_is_shown_as_its_escape(text: str) -> None:
    seen = Seen(message(text))
    assert seen.original == text
    assert all(attributes["class"] == "hidden" for _, attributes in seen.elements)


def test_so_many_changes_of_colour_are_obeyed_and_the_rest_is_shown() -> None:
    html = message("\x1b[31ma\x1b[32mb" * MAX_STYLES)
    assert html.count("fg") == MAX_STYLES
    assert Seen(html).original.count("\x1b") == MAX_STYLES


def test_the_longest_sequence_that_is_obeyed_has_its_length_from_here() -> None:
    longest = f"\x1b[{'1;' * 23}11m"
    assert len(longest) == MAX_SGR
    assert message(f"{longest}a") == '<span class="bold">a</span>'
    assert "hidden" in message(f"\x1b[1{'1;' * 24}ma")


def test_a_message_of_hidden_characters_alone_grows_by_no_more_than_their_escapes() -> None:
    assert len(shown("\x7f" * 65_536)) < 5 * 65_536
