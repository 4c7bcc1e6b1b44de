"""Facts of the host that a process runs on, as plain JSON values. Standard library only."""
