"""Models that a server of vLLM answers for: it draws the tokens, and all else is done here as for a
model in this process (templates, calls of tools, constraints, stop strings).
"""
