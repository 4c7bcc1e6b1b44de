"""From raw records to rows of packed tokens."""
