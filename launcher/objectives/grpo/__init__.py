"""Reinforcement learning from the scores of sampled answers."""
