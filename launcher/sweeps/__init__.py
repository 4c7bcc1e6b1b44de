"""Sweeps: many runs of one command line, in one folder, and what comes of them."""
