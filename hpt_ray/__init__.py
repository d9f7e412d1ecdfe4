"""hpt_ray: distributed post-training with the unified policy gradient estimator (arXiv 2509.04419)."""

__version__ = "0.2.0"
