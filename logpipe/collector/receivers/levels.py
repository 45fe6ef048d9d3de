"""Levels as senders write them: words, and numbers of syslog, bunyan and pino."""

import re
from collections.abc import Mapping
from typing import Any

from logpipe.collector.receivers.fields import is_text

LEVEL_TEXT = "severity_text"
"""Where a level's word is as it was sent, if the event's level says it otherwise."""

LEVELS = (
    "level", "severity", "log.level", "severity_text", "severityText", "lvl", "loglevel",
    "log_level", "levelname", "detected_level",
)  # fmt: skip

SYSLOG_LEVELS = ("FATAL", "FATAL", "FATAL", "ERROR", "WARN", "INFO", "INFO", "DEBUG")
"""By syslog's severities, 0 to 7."""

SYSLOG_SEVERITY = "syslog.severity.code"

_PINO_NUMBERS = range(10, 70, 10)

_PINO_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
"""By the tens of bunyan's and pino's numbers, from 10."""


def _said(level: object, metadata: Mapping[str, Any]) -> str | None:
    """A number that says more than the level that it becomes."""
    if isinstance(level, bool) or not isinstance(level, int | float):
        return None
    exact = level in _PINO_NUMBERS or SYSLOG_SEVERITY in metadata
    return None if exact else str(level)


def level_of(value: object) -> str:
    """Return the word of a level; INFO without one. Numbers are syslog's to 7, pino's from 10."""
    if isinstance(value, str):
        word = value.strip()
        if not re.fullmatch(r"\d{1,2}", word, re.ASCII):
            return word or "INFO"
        value = int(word)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "INFO"
    if 0 <= value < len(SYSLOG_LEVELS):
        return SYSLOG_LEVELS[int(value)]
    if 10 <= value < 70:
        return _PINO_LEVELS[int(value) // 10 - 1]
    return str(value)


def is_level(value: object) -> bool:
    """Whether it may be a level."""
    return is_text(value) or (isinstance(value, int | float) and not isinstance(value, bool))
