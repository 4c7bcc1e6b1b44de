"""What is in the data: the report, the gate, and cleaned copies. Needs no model and no GPU."""
