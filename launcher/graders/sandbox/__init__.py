"""Code of graders and of answers, run apart from this process and within limits."""
