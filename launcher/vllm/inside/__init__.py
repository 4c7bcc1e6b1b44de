"""What runs inside vLLM's own process, where the launcher itself cannot be imported."""
