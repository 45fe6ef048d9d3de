import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.redis_address import SCHEMES, Node, RedisAddress, parse_redis_addr
from logpipe.settings import (
    PORTS,
    ROLES,
    BadSettingsError,
    Settings,
    StreamBytes,
    environment,
    fields,
    load,
    withdrawn,
)

PASSWORD = "s3cr/#t@:?%x[]"

VALUES: dict[str, tuple[str, Any]] = {
    "role": ("collector, ui", ("collector", "ui")),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "workers": ("3", 3),
    "drain_s": ("2.5", 2.5),
    "redis_addr": ("redis://r:1/2", "redis://r:1/2"),
    "ack_replicas": ("1", 1),
    "data_dir": ("/srv/data", "/srv/data"),
    "embedded_maxmemory": ("512mb", "512mb"),
    "stream_name": ("events", "events"),
    "max_message_bytes": ("1000", 1000),
    "max_body_bytes": ("2000", 2000),
    "max_batch_events": ("5", 5),
    "max_metadata_keys": ("6", 6),
    "max_inflight_bytes": ("7", 7),
    "rate_per_token": ("8", 8),
    "max_subscribers": ("9", 9),
    "max_subscribers_per_client": ("10", 10),
    "syslog_tcp": ("5514", 5514),
    "trim_maxlen": ("3000", 3000),
    "trim_maxbytes": ("75%", "75%"),
    "trim_maxage": ("24h", "24h"),
    "consumer_group": ("g", "g"),
    "group_expiry": ("12h", "12h"),
    "consumer_name": ("c", "c"),
    "delivery": ("shared", "shared"),
    "pending_idle_ms": ("100", 100),
    "batch_count": ("10000", 10_000),
    "block_ms": ("10", 10),
    "subscriber_queue_len": ("1", 1),
    "cors_allow_origins": ("http://a, http://b", ("http://a", "http://b")),
    "allowed_hosts": ("logs.example, b", ("logs.example", "b")),
    "collector_url": ("https://c", "https://c"),
    "distributor_url": ("http://[::1]:1/p", "http://[::1]:1/p"),
    "ingest_tokens": ("t1,t2", ("t1", "t2")),
    "read_tokens": ("t3", ("t3",)),
    "admin_tokens": ("t4", ("t4",)),
    "ssl_certfile": ("/c.pem", "/c.pem"),
    "ssl_keyfile": ("/k.pem", "/k.pem"),
    "ssl_keyfile_password": ("p,w", "p,w"),
    "forwarded_allow_ips": ("10.0.0.1, fd00::/8", ("10.0.0.1", "fd00::/8")),
    "heartbeat_s": ("0.5", 0.5),
    "canary_s": ("2.5", 2.5),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


def errors_of(options: dict[str, Any], environ: dict[str, str]) -> list[str]:
    with pytest.raises(BadSettingsError) as caught:
        load(options, environ)
    return str(caught.value).split("\n")


# Where a value comes from


def test_every_setting_is_tried_here() -> None:
    assert [field.name for field in fields()] == list(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_is_an_option_and_a_variable_of_the_same_name(name: str) -> None:
    text, value = VALUES[name]
    assert value != getattr(Settings(), name)
    needed = {"ssl_keyfile": {"SSL_CERTFILE": "/c.pem"}}
    others = needed.get(name, {})
    assert getattr(load({name: text}, others), name) == value
    assert getattr(load({}, {**others, name.upper(): text}), name) == value
    assert getattr(load({name: f" {text} "}, others), name) == value


def test_the_option_wins_over_the_variable_over_the_default() -> None:
    assert load({"port": "1"}, {"PORT": "2"}).port == 1
    assert load({"port": None}, {"PORT": "2"}).port == 2
    assert load({}, {}) == Settings()


def test_an_option_may_be_a_number() -> None:
    assert load({"port": 0}, {"PORT": "2"}).port == 0


@pytest.mark.parametrize("name", VALUES)
def test_an_empty_variable_is_one_that_was_not_set(name: str) -> None:
    assert load({}, {name.upper(): ""}) == Settings()


def test_unknown_variables_are_none_of_its_business() -> None:
    assert load({}, {"PATH": "/bin", "port": "x", "LOGPIPE": "x"}) == Settings()


# A setting that is withdrawn


@pytest.mark.parametrize("text", ["", "1", " 1 "])
def test_one_partition_has_no_effect(text: str) -> None:
    assert load({}, {"PARTITIONS": text}) == Settings()


def test_a_withdrawn_setting_is_warned_of() -> None:
    (line,) = withdrawn({"PARTITIONS": "1"})
    assert line == "PARTITIONS: the setting is withdrawn and has no effect; unset it"
    assert withdrawn({"PARTITIONS": ""}) == withdrawn({}) == []


@pytest.mark.parametrize(("count", "last"), [("2", 1), ("32", 31)])
def test_more_partitions_are_refused_by_the_names_of_their_keys(count: str, last: int) -> None:
    (line,) = errors_of({}, {"PARTITIONS": count, "STREAM_NAME": "events"})
    assert line.startswith(f"PARTITIONS={count}: the setting is withdrawn")
    assert f"events:0-of-{count}:{{*}} to events:{last}-of-{count}:{{*}} stay untouched" in line
    assert "logpipe 0.1 still reads them" in line


def test_the_keys_of_partitions_have_the_name_of_the_stream() -> None:
    (line,) = errors_of({"stream_name": "a\nb"}, {"PARTITIONS": "3", "STREAM_NAME": "other"})
    assert "a\\nb:0-of-3:{*} to a\\nb:2-of-3:{*}" in line


@pytest.mark.parametrize("text", ["0", "-1", "abc", "1.0", "2 3", "٣", "1\n2", "9" * 5_000])
def test_what_is_no_number_of_partitions_is_refused(text: str) -> None:
    (line,) = errors_of({}, {"PARTITIONS": text})
    assert line == f"PARTITIONS={repr(text)[1:-1]}: the setting is withdrawn; unset it"


@pytest.mark.parametrize("name", ["ingest_tokens", "read_tokens", "admin_tokens"])
def test_tokens_may_stand_in_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(b"t1\r\nt2, t3\n\n")
    in_file = {f"{name.upper()}_FILE": str(path)}
    assert getattr(load({}, in_file), name) == ("t1", "t2", "t3")
    assert getattr(load({}, {**in_file, name.upper(): ""}), name) == ("t1", "t2", "t3")
    assert getattr(load({}, {**in_file, name.upper(): "env"}), name) == ("env",)
    assert getattr(load({name: "option"}, {**in_file, name.upper(): "env"}), name) == ("option",)


def test_what_is_not_secret_is_not_read_from_a_file() -> None:
    files = {"PORT_FILE": "/nowhere", "CORS_ALLOW_ORIGINS_FILE": "/nowhere"}
    assert load({}, files) == Settings()


@pytest.mark.parametrize(
    ("name", "text"),
    [("redis_addr", f"redis://u:{PASSWORD}@h"), ("ssl_keyfile_password", "a, b")],
)
def test_an_address_or_a_password_may_stand_in_a_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{text}\n")
    chosen = load({}, {f"{name.upper()}_FILE": str(path)})
    assert getattr(chosen, name) == text
    assert chosen.files == {name: str(path)}
    assert PASSWORD not in repr(chosen)


@pytest.mark.parametrize("text", ["", "\n", " , \n,"])
def test_a_file_of_tokens_that_holds_none_is_refused_and_opens_nothing(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    assert errors_of({}, {"READ_TOKENS_FILE": str(path)}) == [
        f"READ_TOKENS_FILE={path}: holds nothing"
    ]


@pytest.mark.parametrize("name", ["ingest_tokens", "read_tokens", "admin_tokens"])
@pytest.mark.parametrize("text", [",", " ", " , ,"])
def test_commas_without_a_token_are_refused_and_open_nothing(name: str, text: str) -> None:
    told = [f"{name.upper()}=(hidden): holds nothing"]
    assert errors_of({}, {name.upper(): text}) == told
    assert errors_of({name: text}, {}) == told


def test_a_worker_is_told_of_the_file_instead_of_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("t0ken")
    given = {"READ_TOKENS_FILE": str(path), "PATH": "/bin"}
    chosen = load({}, given)
    handed_on = environment(chosen, given)
    assert handed_on == given
    assert load({}, handed_on) == chosen


def test_a_pipe_of_tokens_which_can_be_read_once_is_not_followed(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"t0ken")
    os.close(writing)
    given = {"READ_TOKENS_FILE": f"/dev/fd/{reading}"}
    chosen = load({}, given)
    os.close(reading)
    assert (chosen.read_tokens, chosen.files) == (("t0ken",), {})
    assert environment(chosen, given) == {"READ_TOKENS": "t0ken"}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert errors_of({}, {"READ_TOKENS_FILE": str(path)}) == [
        f"READ_TOKENS_FILE={path}: cannot be read: No such file or directory"
    ]
    path.write_bytes(b"t0ken\xff")
    assert errors_of({}, {"READ_TOKENS_FILE": str(path)}) == [
        f"READ_TOKENS_FILE={path}: cannot be read: it is not UTF-8"
    ]


@pytest.mark.parametrize(
    ("age", "ms"),
    [("0", 0), ("45s", 45_000), ("30m", 1_800_000), ("24h", 86_400_000), ("7d", 604_800_000)],
)
def test_an_age_is_a_number_and_a_unit(age: str, ms: int) -> None:
    assert load({"trim_maxage": age}, {}).trim_maxage_ms == ms


@pytest.mark.parametrize("age", ["24", "h", "-1h", "1.5h", "1w", "9999999999d", "\u0661h"])
def test_what_is_no_age_is_named_with_what_is_one(age: str) -> None:
    assert errors_of({"trim_maxage": age}, {}) == [
        f"TRIM_MAXAGE={age}: must be an age like 30m, 24h or 7d, or 0"
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0", StreamBytes()),
        ("1073741824", StreamBytes(1 << 30)),
        ("512mb", StreamBytes(512 << 20)),
        ("2GiB", StreamBytes(2 << 30)),
        ("64K", StreamBytes(64 << 10)),
        ("75%", StreamBytes(percent=75)),
        ("1%", StreamBytes(percent=1)),
        ("90%", StreamBytes(percent=90)),
        ("auto", StreamBytes()),
    ],
)
def test_what_the_stream_may_take_is_bytes_or_a_percentage(text: str, found: StreamBytes) -> None:
    address = {"redis_addr": "redis://h"}
    assert load({"trim_maxbytes": text, **address}, {}).stream_bytes == found


def test_with_the_embedded_engine_a_percentage_is_the_default() -> None:
    assert load({}, {}).stream_bytes == StreamBytes(percent=75)
    assert load({"trim_maxbytes": "0"}, {}).stream_bytes == StreamBytes()


@pytest.mark.parametrize(
    ("text", "found"), [("1gb", None), ("16mb", 16 << 20), ("4G", 4 << 30), ("33554432", 32 << 20)]
)
def test_the_engine_s_memory_is_bytes(text: str, found: int | None) -> None:
    assert load({"embedded_maxmemory": text}, {}).engine_bytes == found


BYTES_OR_PART = "must be bytes like 512mb or 1073741824, 1% to 90%, auto, or 0"
ENGINE_BYTES = "must be bytes like 512mb or 4gb, from 16mb"

# Bad values

BAD = [
    ("trim_maxbytes", "91%", BYTES_OR_PART),
    ("trim_maxbytes", "0%", BYTES_OR_PART),
    ("trim_maxbytes", "-1", BYTES_OR_PART),
    ("trim_maxbytes", "7.5%", BYTES_OR_PART),
    ("trim_maxbytes", "12 parrots", BYTES_OR_PART),
    ("embedded_maxmemory", "0", ENGINE_BYTES),
    ("embedded_maxmemory", "15mb", ENGINE_BYTES),
    ("embedded_maxmemory", "75%", ENGINE_BYTES),
    ("embedded_maxmemory", "much", ENGINE_BYTES),
    ("port", "abc", "must be a whole number from 0 to 65535"),
    ("port", "-1", "must be a whole number from 0 to 65535"),
    ("port", "65536", "must be a whole number from 0 to 65535"),
    ("port", "80.5", "must be a whole number from 0 to 65535"),
    ("port", "8_080", "must be a whole number from 0 to 65535"),
    ("port", "٨٠", "must be a whole number from 0 to 65535"),
    ("port", "true", "must be a whole number from 0 to 65535"),
    ("port", "0x50", "must be a whole number from 0 to 65535"),
    ("port", " ", "must be a whole number from 0 to 65535"),
    ("workers", "0", "must be a whole number from 1 to 256"),
    ("workers", "1e9", "must be a whole number from 1 to 256"),
    ("ack_replicas", "-1", "must be a whole number from 0 to 100"),
    ("ack_replicas", "101", "must be a whole number from 0 to 100"),
    ("ack_replicas", "one", "must be a whole number from 0 to 100"),
    ("max_message_bytes", "63", "must be a whole number from 64"),
    ("max_body_bytes", "64k", "must be a whole number from 64"),
    ("trim_maxlen", "0", "must be a whole number from 1 to 1000000000000"),
    ("trim_maxlen", "9" * 30, "must be a whole number from 1 to 1000000000000"),
    ("pending_idle_ms", "99", "must be a whole number from 100 to 1000000000000"),
    ("batch_count", "10001", "must be a whole number from 1 to 10000"),
    ("block_ms", "9", "must be a whole number from 10 to 10000"),
    ("subscriber_queue_len", "null", "must be a whole number from 1"),
    ("heartbeat_s", "0", "must be a number above 0 to 86400"),
    ("heartbeat_s", "-5", "must be a number above 0 to 86400"),
    ("heartbeat_s", "nan", "must be a number above 0 to 86400"),
    ("heartbeat_s", "inf", "must be a number above 0 to 86400"),
    ("canary_s", "-1", "must be a number from 0 to 86400"),
    ("heartbeat_s", "15s", "must be a number above 0 to 86400"),
    ("host", " ", "must be a text that is not empty"),
    ("stream_name", "  ", "must be a text that is not empty"),
    ("consumer_group", "g" * 129, "must be a text that is not empty of up to 128 characters"),
    ("delivery", "both", "must be one of broadcast, shared"),
    ("log_level", "INFO", "must be one of debug, info, warning, error"),
    ("log_format", "xml", "must be one of auto, text, json"),
    ("role", "collectr", "must be one of all, collector, distributor, ui"),
    ("role", "ALL", "must be one of all, collector, distributor, ui"),
    ("collector_url", "collector:8081", "must be a URL like http://collector:8081"),
    ("distributor_url", "http://", "must be a URL like http://collector:8081"),
    ("distributor_url", "ftp://x", "must be a URL like http://collector:8081"),
    (
        "forwarded_allow_ips",
        "proxy.example",
        "must be addresses or networks, like 10.0.0.7 or 10.0.0.0/8, or *",
    ),
    (
        "forwarded_allow_ips",
        "10.0.0.1/8",
        "must be addresses or networks, like 10.0.0.7 or 10.0.0.0/8, or *",
    ),
]


@pytest.mark.parametrize(("name", "text", "allowed"), BAD, ids=lambda value: ascii(value)[:20])
def test_a_bad_value_is_one_line_with_variable_value_and_what_is_allowed(
    name: str, text: str, allowed: str
) -> None:
    line = f"{name.upper()}={text}: {allowed}"
    assert errors_of({name: text}, {}) == [line]
    assert errors_of({}, {name.upper(): text}) == [line]


def test_all_bad_values_are_told_at_once() -> None:
    environ = {
        "PORT": "abc",
        "ROLE": "all,x,y",
        "DELIVERY": "both",
        "COLLECTOR_URL": "c",
        "REDIS_ADDR": "redis://h:x",
        "READ_TOKENS_FILE": "/nowhere/tokens",
    }
    named = [line.split("=")[0].split(":")[0] for line in errors_of({}, environ)]
    assert sorted(named) == sorted([*environ, "ROLE"])


def test_no_role_at_all_is_told() -> None:
    assert errors_of({"role": " , "}, {}) == [
        "ROLE=: must be one of all, collector, distributor, ui"
    ]


@pytest.mark.parametrize("name", ["port", "role", "collector_url"])
def test_a_value_of_many_lines_or_with_escapes_stays_on_its_line(name: str) -> None:
    (line,) = errors_of({name: "x\ny\x1b[2J\u202e"}, {})
    assert line.isprintable()
    assert r"x\ny\x1b[2J\u202e" in line


@pytest.mark.parametrize("name", ["stream_name", "consumer_group", "read_tokens", "host"])
def test_what_is_not_utf_8_is_refused(name: str) -> None:
    (line,) = errors_of({}, {name.upper(): "x\udcff"})
    assert line.startswith(name.upper())
    assert line.endswith(": must be UTF-8")
    assert line.isprintable()


def test_a_path_may_have_any_bytes() -> None:
    assert load({}, {"DATA_DIR": "/x\udcff"}).data_dir == "/x\udcff"


@given(st.sampled_from(list(VALUES)), st.text())
def test_any_text_is_a_setting_or_a_bad_one(name: str, text: str) -> None:
    told: list[str] = []
    chosen = Settings()
    try:
        chosen = load({name: text}, {})
    except BadSettingsError as error:
        told = str(error).splitlines()
    assert all(line.startswith(name.upper()) for line in told)
    assert isinstance(getattr(chosen, name), type(getattr(Settings(), name)))


# Secrets


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{PASSWORD}@",
        f"redis://u:{PASSWORD}@h:99999/0",
        f"redis://u:{PASSWORD}@h:port/0",
        f"redis://u:{PASSWORD}@h/db",
        f"rediss://u:{PASSWORD}@[::1/0",
        f"unix://u:{PASSWORD}@/s?db=x",
        f"unix://u:{PASSWORD}@",
        f"http://u:{PASSWORD}@h",
        f"u:{PASSWORD}@h:6379/0",
        f"u:{PASSWORD}://@h:6379/0",
        f"redis+sentinel://:{PASSWORD}@h1,h2/m/0",
        f"redis+cluster://:{PASSWORD}@h1,h2",
    ],
)
def test_a_password_is_never_repeated(address: str) -> None:
    try:
        shown = repr(load({}, {"REDIS_ADDR": address}))
    except BadSettingsError as error:
        shown = f"{error} {error!r} {error.__cause__}"
        assert shown.startswith("REDIS_ADDR: ")
    assert "s3cr" not in shown


def test_no_secret_is_in_what_settings_print() -> None:
    chosen = load(
        {"ingest_tokens": "t0ken-a", "read_tokens": "t0ken-b", "port": "9"},
        {"REDIS_ADDR": f"redis://u:{PASSWORD}@h"},
    )
    for shown in (repr(chosen), str(chosen), f"{chosen.redis}", f"{chosen.redis!r}"):
        assert "t0ken" not in shown
        assert "s3cr" not in shown
    assert "port=9" in repr(chosen)
    assert "ingest_tokens=(hidden)" in repr(chosen)
    assert "read_tokens=()" in repr(Settings())


def test_bad_values_beside_it_do_not_show_a_secret() -> None:
    environ = {"REDIS_ADDR": f"redis://u:{PASSWORD}@h", "INGEST_TOKENS": "t0ken", "PORT": "x"}
    (line,) = errors_of({}, environ)
    assert line.startswith("PORT=x")


# Roles and what follows from them


@pytest.mark.parametrize(
    ("role", "roles", "port", "redis"),
    [
        ("all", set(ROLES), 8080, RedisAddress(embedded="")),
        ("collector,distributor,ui", set(ROLES), 8080, RedisAddress(embedded="")),
        ("ui,all", set(ROLES), 8080, RedisAddress(embedded="")),
        ("ui", {"ui"}, 8080, None),
        ("collector", {"collector"}, 8081, RedisAddress(host="redis")),
        ("distributor", {"distributor"}, 8082, RedisAddress(host="redis")),
        ("collector,distributor", {"collector", "distributor"}, 8081, RedisAddress(host="redis")),
        ("distributor,ui", {"distributor", "ui"}, 8080, RedisAddress(host="redis")),
    ],
)
def test_roles_decide_the_port_and_where_redis_is(
    role: str, roles: set[str], port: int, redis: RedisAddress | None
) -> None:
    chosen = load({"role": role}, {})
    assert chosen.roles == roles
    assert chosen.listen_port == port
    assert chosen.redis == redis


@pytest.mark.parametrize("role", ["all", *ROLES])
def test_a_port_that_was_given_is_taken_for_every_role(role: str) -> None:
    assert load({"role": role, "port": "0"}, {}).listen_port == 0
    assert load({"role": role, "port": "9999"}, {}).listen_port == 9999


def test_every_role_has_a_port() -> None:
    assert set(PORTS) == set(ROLES)


def test_an_address_that_was_given_is_taken_by_every_role_that_needs_one() -> None:
    addressed = {"REDIS_ADDR": "redis://elsewhere"}
    assert load({}, addressed).redis == RedisAddress(host="elsewhere")
    assert load({"role": "collector"}, addressed).redis == RedisAddress(host="elsewhere")
    assert load({"role": "ui"}, addressed).redis is None


def test_the_engine_s_folder_is_that_of_its_address_or_data_dir_or_the_user_s() -> None:
    assert load({}, {"REDIS_ADDR": "embedded:///srv/a"}).engine_dir == Path("/srv/a")
    assert load({}, {"REDIS_ADDR": "embedded://", "DATA_DIR": "/b"}).engine_dir == Path("/b")
    assert load({}, {"DATA_DIR": "/b"}).engine_dir == Path("/b")
    assert load({"role": "ui"}, {}).engine_dir.name == "logpipe"
    assert Settings().engine_dir.is_absolute()


@pytest.mark.parametrize(
    ("host", "exposed"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("localhost", False),
        ("::1", False),
        ("LOCALHOST", False),
        ("localhost.", False),
        ("127.1", False),
        ("0:0:0:0:0:0:0:1", False),
        ("::ffff:127.0.0.1", False),
        ("127.evil.example", True),
        ("0.0.0.0", True),
        ("::", True),
        ("::1f", True),
        ("192.168.1.5", True),
        ("example", True),
    ],
)
def test_only_loopback_is_not_exposed(host: str, exposed: bool) -> None:
    assert load({"host": host}, {}).exposed is exposed


# Fields as documents and options need them


def test_every_field_has_a_help_a_variable_and_says_what_is_allowed() -> None:
    for field in fields():
        assert field.help.endswith("."), field.name
        assert field.variable == field.name.upper()
        assert field.allowed
        assert field.default == getattr(Settings(), field.name)


def test_the_secret_fields_are_those_that_hold_passwords_and_tokens() -> None:
    secret = [field.name for field in fields() if field.secret]
    assert secret == [
        "redis_addr", "ingest_tokens", "read_tokens", "admin_tokens", "ssl_keyfile_password",
    ]  # fmt: skip


# Addresses of Redis


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("redis://", RedisAddress(host="localhost"), "redis://localhost:6379/0"),
        ("redis://h", RedisAddress(host="h"), "redis://h:6379/0"),
        ("redis://h/", RedisAddress(host="h"), "redis://h:6379/0"),
        ("redis://h:1/2", RedisAddress(host="h", port=1, db=2), "redis://h:1/2"),
        ("redis://:7", RedisAddress(host="localhost", port=7), "redis://localhost:7/0"),
        ("rediss://h:65535", RedisAddress(host="h", port=65535, tls=True), "rediss://h:65535/0"),
        ("redis://[::1]:1/2", RedisAddress(host="::1", port=1, db=2), "redis://[::1]:1/2"),
        ("redis://[fe80::1]", RedisAddress(host="fe80::1"), "redis://[fe80::1]:6379/0"),
        ("redis://:p@h", RedisAddress(host="h", password="p"), "redis://h:6379/0"),
        (
            "rediss://h/2?ssl_ca_certs=/a%20b.pem",
            RedisAddress(host="h", tls=True, db=2, authority="/a b.pem"),
            "rediss://h:6379/2",
        ),
        ("redis://u@h", RedisAddress(host="h", username="u"), "redis://h:6379/0"),
        (
            "redis://u:p@[::1]",
            RedisAddress(host="::1", username="u", password="p"),
            "redis://[::1]:6379/0",
        ),
        (
            "redis://u%40x:p%2F%23%25@h",
            RedisAddress(host="h", username="u@x", password="p/#%"),
            "redis://h:6379/0",
        ),
        (
            "redis://u:a/b#c@d:e?f@h:1/2",
            RedisAddress(host="h", port=1, db=2, username="u", password="a/b#c@d:e?f"),
            "redis://h:1/2",
        ),
        ("unix:///run/r.sock", RedisAddress(socket="/run/r.sock"), "unix:///run/r.sock"),
        (
            "unix:///run/r.sock?disk=/srv%2Fa%20%40b",
            RedisAddress(socket="/run/r.sock", disk="/srv/a @b"),
            "unix:///run/r.sock",
        ),
        (
            "unix://u:p@/run/r.sock?db=3",
            RedisAddress(socket="/run/r.sock", db=3, username="u", password="p"),
            "unix:///run/r.sock",
        ),
        (
            "redis+sentinel://h1,h2:7/m",
            RedisAddress(sentinels=(Node("h1", 26379), Node("h2", 7)), service="m"),
            "redis+sentinel://h1:26379,h2:7/m/0",
        ),
        (
            "redis+sentinel://u:p@[::1]/m/2?sentinel_username=s&sentinel_password=q%26",
            RedisAddress(
                sentinels=(Node("::1", 26379),),
                service="m",
                db=2,
                username="u",
                password="p",
                sentinel_username="s",
                sentinel_password="q&",
            ),
            "redis+sentinel://[::1]:26379/m/2",
        ),
        (
            "redis+cluster://:p@h1,h2:7/",
            RedisAddress(cluster=(Node("h1", 6379), Node("h2", 7)), password="p"),
            "redis+cluster://h1:6379,h2:7",
        ),
        (
            "rediss+sentinel://h/m",
            RedisAddress(sentinels=(Node("h", 26379),), service="m", tls=True),
            "rediss+sentinel://h:26379/m/0",
        ),
        (
            "rediss+cluster://h",
            RedisAddress(cluster=(Node("h", 6379),), tls=True),
            "rediss+cluster://h:6379",
        ),
        ("embedded://", RedisAddress(embedded=""), "the embedded engine"),
        ("embedded:///srv/x", RedisAddress(embedded="/srv/x"), "the embedded engine"),
    ],
)
def test_an_address_says_where_redis_is_and_prints_without_its_login(
    text: str, address: RedisAddress, shown: str
) -> None:
    assert parse_redis_addr(text) == address
    assert str(address) == shown
    assert repr(address) == f"RedisAddress({shown})"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("redis", "must begin with redis://"),
        ("embedded", "must begin with redis://"),
        ("h:6379", "must begin with redis://"),
        ("REDIS://h", "must begin with redis://"),
        ("http://h", "must begin with redis://"),
        ("redis+sentinel://h", "the master's name is missing"),
        ("redis+sentinel://h/m n", "the master's name is missing"),
        ("redis+sentinel://h:x/m", r"must be HOST\[:PORT\],…/MASTER\[/DB\]"),
        ("redis+sentinel://h,,i/m", r"must be HOST\[:PORT\],…/MASTER\[/DB\]"),
        ("redis+sentinel://h/m/x", "the database at its end must be a number"),
        ("redis+sentinel://h/m?db=1", "only sentinel_username and sentinel_password may follow"),
        ("redis+cluster://", r"must be HOST\[:PORT\],…"),
        ("redis+cluster://h:70000", r"must be HOST\[:PORT\],…"),
        ("redis+cluster://h/1", r"must be HOST\[:PORT\],…"),
        ("redis://h:", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://h:0", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://h:65536", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://h:abc", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://h:٦", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://::1", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://[::1", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://[]", r"must be HOST\[:PORT\]\[/DB\]"),
        ("redis://h/x", "the database at its end must be a number"),
        ("redis://h/-1", "the database at its end must be a number"),
        ("redis://h/0?ssl=1", "the database at its end must be a number"),
        ("redis://h/٣", "the database at its end must be a number"),
        ("unix:///s?db=x", "the database at its end must be a number"),
        ("unix:///s?folder=x", "only db=NUMBER and disk=FOLDER may follow the ?"),
        ("unix://", "the path of the socket is missing"),
        ("unix://u:p@?db=1", "the path of the socket is missing"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_with_the_reason(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_redis_addr(text)


@given(st.text(), st.sampled_from(["redis://u:{}@h:1/2", "unix://u:{}@/s?db=2"]))
def test_a_password_may_hold_anything_when_percent_encoded(password: str, address: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in password.encode())
    parsed = parse_redis_addr(address.format(encoded))
    assert parsed.password == (password or None)
    assert (parsed.username, parsed.db) == ("u", 2)


@given(st.text(st.characters(codec="utf-8", exclude_characters="%"), min_size=1))
def test_a_password_may_hold_anything_but_a_percent_sign_as_it_is(password: str) -> None:
    assert parse_redis_addr(f"redis://u:{password}@h:1/2").password == password


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for scheme in (*(f"{each}://" for each in SCHEMES), ""):
        try:
            address = parse_redis_addr(scheme + text)
        except ValueError as error:
            address, told = RedisAddress(host="none"), str(error)
        else:
            told = ""
        assert told.isprintable()
        given_ones = [
            *(address.host, address.socket, address.embedded is not None),
            *(address.sentinels, address.cluster),
        ]
        assert sum(map(bool, given_ones)) == 1
