"""Models that runs have made, at work: opened, answering, exported."""
