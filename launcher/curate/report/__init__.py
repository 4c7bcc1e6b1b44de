"""report.json: what was found, as numbers, verdicts and examples; and the gate of a run."""
