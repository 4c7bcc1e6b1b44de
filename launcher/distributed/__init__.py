"""Ranks: how they meet, what they tell each other, what device each has."""
