"""Runs that judge logpipe or its tests from outside, and take longer than a test may."""
