"""Trains networks with nlcg_optax and its rivals, and shows what came out.

``python -m experiments.demo`` compares tuned optimisers on handwritten digits,
``experiments.run`` trains one cell, ``experiments.report`` makes tables and curves from
records, ``experiments.bench`` times the updates.
"""
