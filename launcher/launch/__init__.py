"""Launch back ends: what is started, and how."""
