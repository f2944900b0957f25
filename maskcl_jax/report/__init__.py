"""One page that shows what runs did: curves, images over training, neighbors, a map, evaluations, warnings."""

from maskcl_jax.report.page import Report, after_training, write

__all__ = ["Report", "after_training", "write"]
