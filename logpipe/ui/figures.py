"""Numbers as an operator reads them; what is not known is said so."""

NOT_KNOWN = "not known"

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def number(value: float | None) -> str:
    """A count: 1,234,567; below ten with a digit more where it has one."""
    if value is None:
        return NOT_KNOWN
    return f"{value:.1f}" if 0 < value < 9.95 and value != int(value) else f"{value:,.0f}"


def per_second(value: float | None) -> str:
    """A rate."""
    return NOT_KNOWN if value is None else f"{number(value)}/s"


def size(value: float | None) -> str:
    """Bytes in binary units: 1.5 MiB."""
    if value is None:
        return NOT_KNOWN
    unit = 0
    while value >= 1023.5 and unit < len(_BYTES) - 1:
        value, unit = value / 1024, unit + 1
    return (
        f"{value:.1f} {_BYTES[unit]}" if unit and value < 99.95 else f"{value:,.0f} {_BYTES[unit]}"
    )


def size_per_second(value: float | None) -> str:
    """Bytes a second."""
    return NOT_KNOWN if value is None else f"{size(value)}/s"


def latency(seconds: float | None) -> str:
    """A short time: 350 µs, 1.2 ms, 48 ms, 2.1 s; what is longer as a span."""
    if seconds is None:
        return NOT_KNOWN
    if seconds >= 60:
        return span(seconds)
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    value, unit = (seconds, "s") if seconds >= 0.9995 else (seconds * 1e3, "ms")
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def lag(seconds: float | None) -> str:
    """How far behind in time."""
    return "none" if seconds == 0 else latency(seconds)


def span(seconds: float | None) -> str:
    """A long time in its two largest units: 3 d 4 h."""
    if seconds is None:
        return NOT_KNOWN
    left, words = max(0, int(seconds)), []
    for length, unit in _SPANS:
        if left >= length:
            words.append(f"{left // length} {unit}")
            left %= length
        if len(words) == 2:
            break
    return " ".join(words) or "0 s"


def share(part: float | None) -> str:
    """A part of one, in percent."""
    return NOT_KNOWN if part is None else f"{part * 100:.{1 if part < 0.0995 else 0}f} %"
