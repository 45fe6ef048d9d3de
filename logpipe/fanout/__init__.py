"""The fan-out: the stream is followed once into a window, which subscribers read by a cursor."""
