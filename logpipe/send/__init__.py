"""`logpipe send`: lines of files or standard input, in order, into a collector."""
