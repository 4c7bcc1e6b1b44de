"""One parallel reading of all data, into columns of numbers."""
