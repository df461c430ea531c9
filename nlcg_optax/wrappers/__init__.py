"""Wrappers of transformations and of their extra arguments."""
