"""Files of requests, answered one by one into files."""
