"""A process that serves: its life, its workers, its server and how that speaks HTTP."""
