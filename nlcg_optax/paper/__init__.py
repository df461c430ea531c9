"""What only the paper's system needs (arXiv 1812.02886)."""
