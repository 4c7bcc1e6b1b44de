"""Models: opening, attention, heads, checkpoints, export, and the tiny model."""
