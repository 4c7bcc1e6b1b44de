"""Bookkeeping of runs for the command line."""
