"""What logpipe's speed is measured with, and what it is compared with."""
