"""What was tried and not shown to help."""
