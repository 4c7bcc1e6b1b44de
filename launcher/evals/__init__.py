"""Metrics on held-out records and the comparison of two models."""
