"""Evals of clients: items that are asked and graded, run by run."""
