"""What other shippers speak: a file a protocol, over one intake."""
