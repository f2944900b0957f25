"""Self-supervised visual pre-training by masking and contrasting, in JAX/Flax."""

__version__ = "0.1.0"
