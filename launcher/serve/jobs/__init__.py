"""Fine-tuning jobs: from what a client asked for to a run, and back to what a client reads."""
