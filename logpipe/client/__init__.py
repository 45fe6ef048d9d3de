"""The other roles over HTTP, for a page whose process runs neither and for the terminal."""
