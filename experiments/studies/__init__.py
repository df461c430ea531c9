"""Studies: plans of runs."""
