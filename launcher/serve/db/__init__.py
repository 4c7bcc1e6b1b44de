"""The service's database: its tables, and how it is brought to them."""
