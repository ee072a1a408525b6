"""Training: the step, the loop, the optimizers, evaluation and checkpoints."""
