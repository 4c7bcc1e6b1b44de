"""Objectives: what is learned from a record, and all that follows from it."""
