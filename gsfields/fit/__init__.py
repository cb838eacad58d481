"""Fitting a scene: the training loop, its schedules, densification and checkpoints."""
