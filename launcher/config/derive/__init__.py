"""What follows from a config, a machine and the files that it names."""
