"""What cannot work, found before anything starts."""
