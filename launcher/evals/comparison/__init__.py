"""Two models on the same records: differences, how sure they are, and of which records."""
