"""All that knows how XLA compiles: each function computes what its plain twin does."""
