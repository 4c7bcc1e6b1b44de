"""Meters and trackers of a run."""
