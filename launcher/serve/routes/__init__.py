"""The routes, one file a family; each has a `router`."""
