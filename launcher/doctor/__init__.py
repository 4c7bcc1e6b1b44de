"""`launcher doctor`: what of machine, cluster and services works, and what to do about the rest."""
