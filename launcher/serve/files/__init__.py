"""Files of projects: taken in, checked, kept, and handed out."""
