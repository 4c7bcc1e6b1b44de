"""The run plane: the process on each rank, and what else needs the model."""
