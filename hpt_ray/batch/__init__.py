"""Rows to packs: fill micro-batches by tokens and deal them to learner ranks."""
