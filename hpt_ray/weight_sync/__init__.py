"""Learner to rollout workers: a transaction of packed buckets with a version, never through the disk."""
