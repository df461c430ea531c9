"""CIFAR-100: the paper's recipe, and tuned optimizers, at several batch sizes."""
