"""Tokenising once, before any rank exists: from sources to a cache on disk."""
