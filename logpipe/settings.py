"""The settings: one frozen struct from which options, environment variables and help derive.

A field is a line: name, type with its bounds, default, help. `load` is the only reader of the
environment; it reports every bad value at once and never repeats a secret one.
"""

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
import platformdirs
from msgspec import Meta

from logpipe.ids import UNIT_MS
from logpipe.redis_address import RedisAddress, parse_redis_addr

Words = tuple[str, ...]

_AGE = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_BYTES = re.compile(r"(\d{1,15})(?:([kmgt])(?:i?b)?)?", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"(\d{1,3})%", re.ASCII)
EMBEDDED_PERCENT = 75
"""Of the embedded engine's memory, what the stream may take where TRIM_MAXBYTES does not say; the
rest is for idempotency keys, groups, and what comes between two looks at its size."""
MAX_PERCENT = 90
"""Of `maxmemory` for the stream, at the most: with more, Redis could stay full."""
DEFAULT_ENGINE_MEMORY = "1gb"
MIN_ENGINE_BYTES = 16 << 20
"""The least memory of the embedded engine: an append of a body of a few megabytes fits in it."""
_ORIGIN = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#@]+")
Role = Literal["collector", "distributor", "ui"]
ROLES: tuple[Role, ...] = get_args(Role)

PORTS: Mapping[str, int] = {"ui": 8080, "collector": 8081, "distributor": 8082}
"""The port when none is given: that of the first of these that the process serves."""


PATHS = frozenset({"data_dir", "ssl_certfile", "ssl_keyfile"})
"""Settings that name files, which may do so in any bytes."""


class StreamBytes(NamedTuple):
    """What the stream may take in Redis: bytes, or percent of its `maxmemory`; 0 and 0: any."""

    bytes: int = 0
    percent: int = 0


class BadSettingsError(Exception):
    """One line for each setting that cannot be used."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))


def setting(help: str, *, secret: bool = False, **bounds: Any) -> Meta:  # noqa: A002
    """What a field's annotation carries besides its type."""
    return Meta(description=help, extra={"secret": secret}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a process of logpipe can be told; the units are in the names or the help."""

    role: Annotated[Words, setting("Roles to run: all, collector, distributor, ui.")] = ("all",)
    host: Annotated[str, setting("Address to listen on.", min_length=1)] = "127.0.0.1"
    port: Annotated[
        int,
        setting(
            "Port to listen on; 0 for any free one. By role: 8080, 8081, 8082.", ge=0, le=65535
        ),
    ] = -1
    workers: Annotated[
        int, setting("Processes that serve the port, each with all the roles.", ge=1, le=256)
    ] = 1
    drain_s: Annotated[
        float,
        setting(
            "Seconds after SIGTERM for which all is still served while /healthz says 503, so that"
            " load balancers send new requests elsewhere.",
            ge=0,
            le=3600,
        ),
    ] = 0
    redis_addr: Annotated[
        str,
        setting(
            "redis://, rediss://, unix://, redis+sentinel://HOST:PORT,…/MASTER/DB,"
            " redis+cluster://HOST:PORT,… (both also rediss+…) or embedded://[PATH]. All roles in"
            " one process: embedded; else redis://redis:6379/0. With a password safer in a file,"
            " REDIS_ADDR_FILE.",
            secret=True,
        ),
    ] = ""
    ack_replicas: Annotated[
        int,
        setting("Replicas that must have an event before it is acknowledged.", ge=0, le=100),
    ] = 0
    data_dir: Annotated[str, setting("Folder of the embedded engine.")] = ""
    embedded_maxmemory: Annotated[
        str,
        setting(
            "Memory of the embedded engine's data, like 512mb or 4gb. The default takes half of the"
            " machine's memory at the most.",
            min_length=1,
        ),
    ] = DEFAULT_ENGINE_MEMORY
    stream_name: Annotated[str, setting("Key of the Redis Stream.", min_length=1)] = "logs"
    max_message_bytes: Annotated[int, setting("Largest event, as JSON.", ge=64)] = 65_536
    max_body_bytes: Annotated[int, setting("Largest request body, decompressed.", ge=64)] = (
        16_777_216
    )
    max_batch_events: Annotated[int, setting("Events of one request.", ge=1)] = 200_000
    max_metadata_keys: Annotated[
        int, setting("Keys of an event's metadata, on all levels.", ge=1)
    ] = 1_000
    max_inflight_bytes: Annotated[
        int, setting("Events under way in a collector: being received, or waiting for Redis.", ge=1)
    ] = 134_217_728
    rate_per_token: Annotated[
        int,
        setting("Events a second of a token, or of an address without tokens. 0: any.", ge=0),
    ] = 0
    max_subscribers: Annotated[int, setting("Subscribers of a process.", ge=1)] = 10_000
    max_subscribers_per_client: Annotated[
        int,
        setting(
            "Of these, of one address. 0: any, as proxies not in FORWARDED_ALLOW_IPS need.",
            ge=0,
        ),
    ] = 0
    syslog_tcp: Annotated[
        int, setting("Port for syslog over TCP; none unless given.", ge=0, le=65535)
    ] = -1
    trim_maxlen: Annotated[
        int, setting("Entries that the stream keeps, about.", ge=1, le=10**12)
    ] = 50_000
    trim_maxbytes: Annotated[
        str,
        setting(
            "Bytes that the stream may take in Redis, about, like 512mb, or a part of Redis'"
            " maxmemory, like 75%. 0: any. auto: any, and with the embedded engine 75%.",
            min_length=1,
        ),
    ] = "auto"
    trim_maxage: Annotated[
        str, setting("Age up to which events are kept, like 30m, 24h or 7d. 0: any.", min_length=1)
    ] = "0"
    consumer_group: Annotated[
        str, setting("Group of delivery=shared.", min_length=1, max_length=128)
    ] = "distributors"
    group_expiry: Annotated[
        str,
        setting(
            "How long a group made by logpipe is kept without a member, like 30m, 24h or 7d; never"
            " CONSUMER_GROUP. 0: without end.",
            min_length=1,
        ),
    ] = "7d"
    consumer_name: Annotated[
        str, setting("This replica's name in its groups.", min_length=1, max_length=128)
    ] = "dist-1"
    delivery: Annotated[
        Literal["broadcast", "shared"], setting("What a plain /subscribe gets.")
    ] = "broadcast"
    pending_idle_ms: Annotated[
        int,
        setting(
            "A pending event idle for longer is claimed by another consumer.", ge=100, le=10**12
        ),
    ] = 30_000
    batch_count: Annotated[int, setting("COUNT of a read.", ge=1, le=10_000)] = 500
    block_ms: Annotated[int, setting("BLOCK of a read.", ge=10, le=10_000)] = 1_000
    subscriber_queue_len: Annotated[
        int, setting("Events that a subscriber may be behind in memory.", ge=1)
    ] = 10_000
    cors_allow_origins: Annotated[
        Words,
        setting(
            "Origins whose pages may read and send, like https://app.example; *: all. Unless given:"
            " all; none but its own where only this machine can connect and no token is needed."
        ),
    ] = ()
    allowed_hosts: Annotated[
        Words,
        setting(
            "Host names besides localhost under which browsers may open the page while no"
            " READ_TOKENS guard it, and under which a process answers where only this machine can"
            " connect and no token is needed; *: any."
        ),
    ] = ()
    collector_url: Annotated[str, setting("Where a ui that runs alone sends to.")] = (
        "http://collector:8081"
    )
    distributor_url: Annotated[str, setting("Where a ui that runs alone reads from.")] = (
        "http://distributor:8082"
    )
    ingest_tokens: Annotated[
        Words,
        setting("Bearer tokens that may send; safer in a file, INGEST_TOKENS_FILE.", secret=True),
    ] = ()
    read_tokens: Annotated[
        Words,
        setting("Bearer tokens that may read; safer in a file, READ_TOKENS_FILE.", secret=True),
    ] = ()
    admin_tokens: Annotated[
        Words,
        setting(
            "Bearer tokens that may read, and that /metrics, /status and /subscribers then need;"
            " safer in a file, ADMIN_TOKENS_FILE.",
            secret=True,
        ),
    ] = ()
    ssl_certfile: Annotated[
        str, setting("Certificate in PEM, with its chain: https instead of http.")
    ] = ""
    ssl_keyfile: Annotated[str, setting("Its private key, unless SSL_CERTFILE holds it.")] = ""
    ssl_keyfile_password: Annotated[
        str,
        setting("The key's password; safer in a file, SSL_KEYFILE_PASSWORD_FILE.", secret=True),
    ] = ""
    forwarded_allow_ips: Annotated[
        Words,
        setting(
            "Addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are"
            " believed; *: everyone's."
        ),
    ] = ()
    heartbeat_s: Annotated[
        float, setting("Seconds between heartbeats on an idle subscription.", gt=0, le=86_400)
    ] = 15.0
    canary_s: Annotated[
        float,
        setting(
            "Seconds between two canaries: events of logpipe's own that measure the way from"
            " collector to subscriber. 0: none.",
            ge=0,
            le=86_400,
        ),
    ] = 0.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], setting("Least level of logpipe's own log.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"], setting("auto: text on a terminal, else json.")
    ] = "auto"
    files: dict[str, str] = {}
    """No setting, but where secret ones were read: the path by the field's name."""

    @property
    def roles(self) -> frozenset[Role]:
        """The roles to run, `all` spelled out."""
        return frozenset(role for role in ROLES if role in self.role or "all" in self.role)

    @property
    def listen_port(self) -> int:
        """The port to listen on, by role where none was given."""
        return self.port if self.port >= 0 else next(PORTS[r] for r in PORTS if r in self.roles)

    @property
    def redis(self) -> RedisAddress | None:
        """Where Redis is; None for a ui alone, which needs none."""
        if self.roles == {"ui"}:
            return None
        if self.redis_addr:
            return parse_redis_addr(self.redis_addr)
        if self.roles == set(ROLES):
            return RedisAddress(embedded="")
        return RedisAddress(host="redis")

    @property
    def engine_dir(self) -> Path:
        """The folder of the embedded engine."""
        address = self.redis
        chosen = (address.embedded if address else None) or self.data_dir
        return Path(chosen or platformdirs.user_data_dir("logpipe", appauthor=False))

    @property
    def trim_maxage_ms(self) -> int:
        """TRIM_MAXAGE; 0 for any. Raises ValueError where it is no age."""
        return _age_ms(self.trim_maxage)

    @property
    def group_expiry_ms(self) -> int:
        """GROUP_EXPIRY; 0: groups never end. Raises ValueError where it is no age."""
        return _age_ms(self.group_expiry)

    @property
    def stream_bytes(self) -> StreamBytes:
        """TRIM_MAXBYTES. Raises ValueError where it is neither bytes nor a percentage."""
        given = _stream_bytes_of(self.trim_maxbytes)
        if given is not None:
            return given
        embedded = self.redis is not None and self.redis.embedded is not None
        return StreamBytes(percent=EMBEDDED_PERCENT if embedded else 0)

    @property
    def engine_bytes(self) -> int | None:
        """EMBEDDED_MAXMEMORY; None where it was not given. Raises ValueError where it is too little
        or no number of bytes."""
        if self.embedded_maxmemory == DEFAULT_ENGINE_MEMORY:
            return None
        size = _bytes_of(self.embedded_maxmemory)
        if size is None or size < MIN_ENGINE_BYTES:
            raise ValueError("must be bytes like 512mb or 4gb, from 16mb")
        return size

    @property
    def scheme(self) -> str:
        """What is spoken at the port: http, or https where there is a certificate."""
        return "https" if self.ssl_certfile else "http"

    @property
    def exposed(self) -> bool:
        """Whether others than this machine can connect."""
        return not _is_loopback(self.host.lower().rstrip("."))

    def __repr__(self) -> str:
        shown = (
            f"{field.name}=(hidden)"
            if field.secret and getattr(self, field.name)
            else f"{field.name}={_shown(getattr(self, field.name))!r}"
            for field in fields()
        )
        return f"Settings({', '.join(shown)})"


def _age_ms(text: str) -> int:
    if text == "0":
        return 0
    found = _AGE.fullmatch(text)
    if not found:
        raise ValueError("must be an age like 30m, 24h or 7d, or 0")
    return int(found[1]) * UNIT_MS[found[2]]


def _bytes_of(text: str) -> int | None:
    """A number of bytes, with a unit (1kb: 1024 bytes) or without; None for any other text."""
    found = _BYTES.fullmatch(text)
    return int(found[1]) * _UNIT_BYTES[(found[2] or "").lower()] if found else None


def _stream_bytes_of(text: str) -> StreamBytes | None:
    """What TRIM_MAXBYTES says; None for `auto`. Raises ValueError for what it cannot be."""
    if text == "auto":
        return None
    if found := _PERCENT.fullmatch(text):
        if 1 <= int(found[1]) <= MAX_PERCENT:
            return StreamBytes(percent=int(found[1]))
    elif (size := _bytes_of(text)) is not None:
        return StreamBytes(size)
    raise ValueError(f"must be bytes like 512mb or 1073741824, 1% to {MAX_PERCENT}%, auto, or 0")


class Field(msgspec.Struct, frozen=True):
    """A field of `Settings` as options and documents need it."""

    name: str
    type: Any
    default: Any
    help: str
    secret: bool

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.name.upper()

    @property
    def metavar(self) -> str:
        """What stands for the value in the help of options."""
        kind, _ = _split(self.type)
        if get_origin(kind) is Literal:
            return "|".join(get_args(kind))
        word = self.variable.rpartition("_")[2]
        return {int: "N", float: "SECONDS", Words: f"{word.removesuffix('S')},…"}.get(kind, word)

    @property
    def allowed(self) -> str:
        """What a value may be, for errors and documents."""
        kind, meta = _split(self.type)
        if get_origin(kind) is Literal:
            return "one of " + ", ".join(get_args(kind))
        if kind in (int, float):
            low = max(0, meta.ge) if meta.ge is not None else meta.gt
            above = "from" if meta.ge is not None else "above"
            upto = f" to {meta.le}" if meta.le is not None else ""
            return f"a{' whole' if kind is int else ''} number {above} {low}{upto}"
        longest = f" of up to {meta.max_length} characters" if meta.max_length else ""
        if kind == Words:
            return "words, comma-separated"
        return ("a text that is not empty" if meta.min_length else "a text") + longest


def fields() -> Iterator[Field]:
    """The settings, in the order of the struct."""
    for info in msgspec.structs.fields(Settings):
        if info.name == "files":
            continue
        _, meta = _split(info.type)
        yield Field(
            info.encode_name, info.type, info.default, meta.description, meta.extra["secret"]
        )


def _split(annotated: Any) -> tuple[Any, Any]:
    return annotated.__origin__, annotated.__metadata__[0]


def _shown(value: Any) -> Any:
    return without_credentials(value) if isinstance(value, str) else value


def without_credentials(url: str) -> str:
    """A URL as it may be shown. To the last @: a password may hold `/`, `#` and `@` as it is."""
    return re.sub(r"^(\w+://)?.*@", r"\1", url, flags=re.DOTALL)


def load(options: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Settings from options (texts or None, by field name), then the environment, then defaults.

    Raises `BadSettingsError` with a line for each bad value.
    """
    values: dict[str, Any] = {}
    files: dict[str, str] = {}
    bad: list[str] = []
    for field in fields():
        try:
            text, path = _text_of(field, options, environ)
            if text is not None:
                values[field.name] = _convert(field, text)
            if path and Path(path).is_file():  # a pipe can be read once
                files[field.name] = path
        except ValueError as error:
            bad.append(str(error))
    settings = Settings(**values, files=files)
    bad += _check(settings)
    bad += _partitions_trouble(environ, settings.stream_name)
    if bad:
        raise BadSettingsError(bad)
    return settings


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is to `load` these settings and no others."""
    kept = dict(environ)
    for field in fields():
        kept.pop(field.variable, None)
        kept.pop(f"{field.variable}_FILE", None)
        value = getattr(settings, field.name)
        if path := settings.files.get(field.name):
            kept[f"{field.variable}_FILE"] = path
        elif value != field.default:
            kept[field.variable] = ",".join(value) if isinstance(value, tuple) else str(value)
    return kept


def words_in(path: str) -> tuple[str, ...]:
    """The words of a file, by commas and lines. Raises ValueError where it has none."""
    words = _words(_read(path).replace("\n", ","))
    if not words:
        raise ValueError("holds nothing")
    return words


def _read(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot be read: {reason}") from None
    if not text:  # as a file that is just written: no tokens would open what they shall close
        raise ValueError("holds nothing")
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _text_of(
    field: Field, options: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str | None, str]:
    """The text of a setting, and the path of the file that it is from."""
    if (option := options.get(field.name)) is not None:
        return str(option), ""
    # An empty variable is one that a compose file left blank: its file or the default serves.
    if text := environ.get(field.variable):
        return text, ""
    path = environ.get(f"{field.variable}_FILE")
    if not path or not field.secret:
        return None, ""
    try:
        words = _split(field.type)[0] == Words
        return ",".join(words_in(path)) if words else _read(path), path
    except ValueError as error:
        raise ValueError(f"{field.variable}_FILE={on_one_line(path)}: {error}") from None


def _convert(field: Field, text: str) -> Any:
    kind, _ = _split(field.type)
    shown = "(hidden)" if field.secret else on_one_line(text)
    if field.name not in PATHS and not _is_utf8(text):
        raise ValueError(f"{field.variable}={shown}: must be UTF-8")
    value: Any = text.strip()
    if kind == Words:
        value = _words(text)
        if text and field.secret and not value:  # as "$A,$B" of what is not set: it would open
            raise ValueError(f"{field.variable}=(hidden): holds nothing")
        if field.name == "cors_allow_origins" and not value:  # it would mean what is not given
            raise ValueError(f"{field.variable}={shown}: must name origins, or *")
    try:
        return msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError:
        raise ValueError(f"{field.variable}={shown}: must be {field.allowed}") from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # of other bytes Python makes half characters
        return False
    return True


def on_one_line(text: str) -> str:
    """A value as an error shows it: a line end or a terminal's escape must not leave its line."""
    return repr(text)[1:-1]


def _check(settings: Settings) -> list[str]:
    """What depends on more than one value, or on more than a type can say: a line for each."""
    bad = [
        f"ROLE={on_one_line(name)}: must be one of all, {', '.join(ROLES)}"
        for name in settings.role
        if name not in (*ROLES, "all")
    ]
    if not settings.role:
        bad.append(f"ROLE=: must be one of all, {', '.join(ROLES)}")
    for variable, url in (
        ("COLLECTOR_URL", settings.collector_url),
        ("DISTRIBUTOR_URL", settings.distributor_url),
    ):
        if not re.fullmatch(r"https?://[^/\s]+.*", url):
            told = on_one_line(without_credentials(url))
            bad.append(f"{variable}={told}: must be a URL like http://collector:8081")
    bad += [
        f"CORS_ALLOW_ORIGINS={on_one_line(origin)}: must be origins like https://app.example, or *"
        for origin in settings.cors_allow_origins
        if not _ORIGIN.fullmatch(origin)
    ]
    for network in settings.forwarded_allow_ips:
        try:
            _ = network == "*" or ipaddress.ip_network(network)
        except ValueError:
            bad.append(
                f"FORWARDED_ALLOW_IPS={on_one_line(network)}: must be addresses or networks,"
                " like 10.0.0.7 or 10.0.0.0/8, or *"
            )
    if settings.ssl_keyfile and not settings.ssl_certfile:
        bad.append("SSL_KEYFILE: needs SSL_CERTFILE, its certificate")
    for variable, text, read in (
        ("TRIM_MAXAGE", settings.trim_maxage, lambda: settings.trim_maxage_ms),
        ("GROUP_EXPIRY", settings.group_expiry, lambda: settings.group_expiry_ms),
        ("TRIM_MAXBYTES", settings.trim_maxbytes, lambda: _stream_bytes_of(settings.trim_maxbytes)),
        ("EMBEDDED_MAXMEMORY", settings.embedded_maxmemory, lambda: settings.engine_bytes),
    ):
        try:
            _ = read()
        except ValueError as error:
            bad.append(f"{variable}={on_one_line(text)}: {error}")
    bad += _redis_trouble(settings) if settings.role else ()
    return bad


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:  # as 127.1, which is an address for the kernel
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:  # a name
            return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _redis_trouble(settings: Settings) -> Iterator[str]:
    try:
        address = settings.redis
        if address and address.authority:
            ssl.create_default_context(cafile=address.authority)
    except OSError as error:  # ssl.SSLError included
        yield f"REDIS_ADDR: ssl_ca_certs names no certificates in PEM: {error.strerror}"
    except ValueError as error:
        yield f"REDIS_ADDR: {error}"


def withdrawn(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that is set and no longer has an effect."""
    if not environ.get("PARTITIONS", "").strip():
        return []
    return ["PARTITIONS: the setting is withdrawn and has no effect; unset it"]


def _partitions_trouble(environ: Mapping[str, str], stream_name: str) -> Iterator[str]:
    """A line where PARTITIONS is not 1: by it, logpipe 0.1 kept the events in several keys, which
    this version does not read."""
    text = environ.get("PARTITIONS", "").strip()
    if text in ("", "1"):
        return
    shown, name = f"PARTITIONS={on_one_line(text)}", on_one_line(stream_name)
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        yield f"{shown}: the setting is withdrawn; unset it"
        return
    yield (
        f"{shown}: the setting is withdrawn. The Redis keys {name}:0-of-{text}:{{*}} to"
        f" {name}:{int(text) - 1}-of-{text}:{{*}} stay untouched, and logpipe 0.1 still reads"
        f" them. Unset PARTITIONS to use the key {name}"
    )
