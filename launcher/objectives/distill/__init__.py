"""Distillation: a smaller model learns from a larger one, the teacher, beside the data."""
