"""Keyword spotting that is trained by its end metric (arXiv 2011.01151)."""
