"""Metrics, one file per protocol: pure functions of tensors."""
