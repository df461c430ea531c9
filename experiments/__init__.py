"""Trains networks with nlcg_optax and its rivals, and reports the results.

``python -m experiments.studies.digits`` compares tuned optimizers on digits,
``experiments.run`` trains one cell, ``experiments.report`` makes tables and curves from
records, ``experiments.bench.update`` times the updates.
"""
