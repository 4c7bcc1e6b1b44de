"""Revisions of the database, oldest first; each names the one before it.

A change of `tables.py` needs a new one here, once the last has been in a release: a test compares.
"""
