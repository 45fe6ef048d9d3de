"""The engine's one error."""


class EngineError(Exception):
    """The engine cannot run: one line, with what to do about it."""
