"""An answer in one piece, and the end of a body that is refused before it was read."""

from collections.abc import Mapping
from typing import NamedTuple

from starlette.types import Receive, Send

from logpipe.collector.body import drain
from logpipe.problems import MEDIA_TYPE, Problem

BODILESS = (204, 304)


class Answer(NamedTuple):
    """A whole response; without a media type it has no body."""

    status: int
    media_type: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = {}


def problem_answer(problem: Problem) -> Answer:
    """A refusal as RFC 9457 has it."""
    return Answer(problem.status, MEDIA_TYPE, problem.body(), problem.answered_headers())


async def give(answer: Answer, receive: Receive, send: Send, *, body_read: bool = True) -> None:
    """Answers at once, then lets an unread body run out before the connection closes."""
    headers = [
        (name.lower().encode(), value.encode("latin-1", "replace"))
        for name, value in answer.headers.items()
    ]
    if answer.media_type:
        headers.append((b"content-type", answer.media_type.encode()))
    if answer.status not in BODILESS:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    if not body_read:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": not body_read})
    if not body_read:
        await drain(receive)
        await send({"type": "http.response.body", "body": b""})
