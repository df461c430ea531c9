"""The Hager-Zhang line search."""
