"""Trains networks with nlcg_optax and with baselines, and reports the results.

``python -m experiments.studies.digits`` compares tuned optimizers on digits,
``experiments.run`` makes one run, ``experiments.report`` makes tables and curves from
records, ``experiments.bench.update`` times the updates.
"""
