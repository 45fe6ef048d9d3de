"""Hostile input for a running logpipe: bodies and byte streams by number, and a judge."""
