"""Large batch: the two presets against tuned and against learning-rate-free methods."""
