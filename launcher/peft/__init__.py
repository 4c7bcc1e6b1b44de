"""Parameter-efficient methods, one file a family."""
