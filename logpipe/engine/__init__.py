"""The embedded engine: a private, real Valkey of one data folder, for `logpipe serve` alone."""

from logpipe.engine.engine import Engine
from logpipe.engine.error import EngineError
from logpipe.engine.rewriting import Rewriting

__all__ = ["Engine", "EngineError", "Rewriting"]
