"""Listening sockets, and when the kernel gives up on who is connected to them."""

import errno
import socket

from logpipe.settings import on_one_line

BACKLOG = 2048
"""Connections that the kernel keeps until they are accepted."""

ACCEPTED_AT_ONCE = 32
"""Connections that are accepted in one iteration of the event loop: libuv accepts one from each
listening socket (measured). With a single socket, clients that connected all the time and left at
once made all others wait for up to 4 s to be accepted while the loop was busy; with 16, for 0.3 s.
Each socket costs 0.6 us for each new connection."""

DEAD_READER_MS = 60_000
"""A reader that takes nothing for so long, or whose host is gone, is cut off by the kernel."""

IDLE_S = 30
PROBE_S = 10
"""After so long without a word the kernel asks whether the other host is there, and again so often,
until DEAD_READER_MS are over: of a connection that is only read nobody would notice else."""


class PortTakenError(Exception):
    """The address cannot be listened on; one line that says why."""


def bind(host: str, port: int, *, variable: str = "PORT", shared: bool = False) -> socket.socket:
    """A listening socket, `shared` when other workers listen on the same port; `variable` is the
    setting that names the port. Raises `PortTakenError`."""
    listener = _bound(host, port, shared=shared, variable=variable)
    listener.listen(BACKLOG)
    return listener


def bind_shared(host: str, port: int, count: int) -> list[socket.socket]:
    """So many listening sockets on one port, among which the kernel spreads the connections.

    Raises `PortTakenError`, also where another process would share the port with these.
    """
    with _bound(host, port) as probe:
        port = probe.getsockname()[1]
    listeners = [_bound(host, port, shared=True) for _ in range(count)]
    for listener in listeners:
        listener.listen(BACKLOG)
    return listeners


def bind_anew(host: str, listener: socket.socket) -> socket.socket:
    """A socket in the place of one of `bind_shared`, which is closed with the connections that
    wait to be accepted from it. The kernel gives it none before it listens.

    Raises `PortTakenError`.
    """
    port = listener.getsockname()[1]
    listener.close()
    return _bound(host, port, shared=True)


def copies(listener: socket.socket) -> list[socket.socket]:
    """A listening socket and duplicates of it, from all of which its connections are accepted."""
    return [listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]


def _bound(host: str, port: int, *, shared: bool = False, variable: str = "PORT") -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise PortTakenError(f"HOST={on_one_line(host)}: {reason}") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", DEAD_READER_MS),
        ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", IDLE_S),
        ("TCP_KEEPINTVL", PROBE_S),
        ("TCP_KEEPCNT", DEAD_READER_MS // 1000 // PROBE_S),
    ):
        if hasattr(socket, option):  # the connections that it accepts have them, too
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"{variable}={port}: in use on {host}; stop what listens there or choose another"
                f" --{variable.lower().replace('_', '-')}"
            ) from None
        raise PortTakenError(f"{host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener
