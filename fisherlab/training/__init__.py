"""Training: one run, its records, its checkpoints."""
