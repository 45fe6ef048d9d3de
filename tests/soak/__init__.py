"""The whole pipeline under load and faults, judged from outside: `make soak`."""
