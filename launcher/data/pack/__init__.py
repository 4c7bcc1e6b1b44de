"""From a cache to rows: which records share a sequence, in which order."""
