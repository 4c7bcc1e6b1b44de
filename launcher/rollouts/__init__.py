"""Rows of answers that the model in training gives: drawn, scored, kept in a journal, dealt out."""
