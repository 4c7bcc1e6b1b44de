"""Telling other servers what has happened."""
