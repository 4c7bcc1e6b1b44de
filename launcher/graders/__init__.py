"""Scores of single answers: graders by OpenAI's wire form, as metric, as reward and on files."""
