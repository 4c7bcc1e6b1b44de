"""Loading, attention, LM head and export of causal language models."""
