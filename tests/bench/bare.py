"""The bare ceiling: what uvicorn itself can take, with an application that does nothing."""

import click
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

BODY = b'{"id":"1710000000000-0"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Reads the body of any request and answers 202 with an id that is always the same."""
    while (message := await receive())["type"] == "http.request" and message["more_body"]:
        pass
    await send(
        {"type": "http.response.start", "status": 202, "headers": HEADERS, "trailers": False}
    )
    await send({"type": "http.response.body", "body": BODY, "more_body": False})


@click.command()
@click.option("--port", type=int, required=True)
def main(port: int) -> None:
    """Serves on 127.0.0.1, in one process."""
    uvicorn.run(
        app,
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
