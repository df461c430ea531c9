"""Trains networks with nlcg_optax and its rivals, and shows what came out.

``python -m experiments.studies.digits`` compares tuned optimisers on digits,
``experiments.run`` trains one cell, ``experiments.report`` makes tables and curves from
records, ``experiments.bench.update`` times the updates.
"""
