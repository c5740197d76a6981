"""Losses, one equation family per file: pure functions of tensors that return one number per sample, [B]."""
