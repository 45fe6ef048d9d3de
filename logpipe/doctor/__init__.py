"""A running deployment examined from outside, as senders and readers meet it: over HTTP alone.

`senders.py` is what they would send, `look.py` gathers facts, `checks.py` judges them,
`report.py` tells the findings.
"""
