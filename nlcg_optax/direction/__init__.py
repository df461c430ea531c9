"""The search direction: d = -P g + beta d_prev."""
