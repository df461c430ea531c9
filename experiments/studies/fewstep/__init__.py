"""Few steps at large batch: tuned baselines against NLCG with only a learning rate."""
