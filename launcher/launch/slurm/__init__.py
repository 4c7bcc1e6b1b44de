"""`launch=slurm`, and all that is known of Slurm."""
