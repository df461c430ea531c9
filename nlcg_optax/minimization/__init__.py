"""The deterministic solver `minimize`."""
