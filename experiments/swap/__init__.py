"""Stochastic weight averaging in parallel."""
