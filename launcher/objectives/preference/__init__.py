"""Objectives that learn which of two answers is the better."""
