"""Is this run well: its ranks alive and none slow, its model computing what it should."""
