"""Models that answer: kept in memory for a while, each in a process of its own."""
