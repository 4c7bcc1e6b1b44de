"""What every request meets: its limits, who asks, its record in the log, and how answers look."""
