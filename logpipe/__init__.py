"""logpipe: a self-hosted live log pipeline."""

__version__ = "0.1.0"
