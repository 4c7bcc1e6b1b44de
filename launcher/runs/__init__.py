"""Bookkeeping of runs: what they need, their start, state, logs and end."""
