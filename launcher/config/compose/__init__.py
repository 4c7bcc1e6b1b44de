"""Which files and words make a config: Hydra's groups, files of one's own, overrides."""
