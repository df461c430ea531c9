"""The tuning protocol."""
