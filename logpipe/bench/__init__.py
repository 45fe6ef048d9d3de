"""`logpipe bench`: measures a running deployment from outside, over HTTP alone."""
