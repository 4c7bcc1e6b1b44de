"""Graders of clients, run in processes of their own."""
