"""A rank: start, loop, engine, checkpoints, and what follows the last step."""
