"""The distributor: the live stream and the history over HTTP."""
