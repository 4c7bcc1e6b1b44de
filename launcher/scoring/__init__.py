"""Models on held-out records: in training, by themselves, and against each other."""
