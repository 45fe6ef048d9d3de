"""Mutation measurement: which small faults in the core no test notices."""
