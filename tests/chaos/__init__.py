"""Faults on real processes, judged by an oracle that stands outside and is never faulted."""
