"""What is wrong with the data as a whole, and how much of it is too much."""
