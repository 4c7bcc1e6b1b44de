"""A cleaned copy of the training data."""
