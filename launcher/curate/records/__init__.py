"""One record: its texts, what is wrong with it, and what stands for it among others."""
