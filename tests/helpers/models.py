"""Small networks for tests."""

from maskcl_jax.models.vit import ViT


def vit(**fields):
    """A small ViT."""
    return ViT(**{"image_size": (16, 24), "channels": 3, "patch_size": 8, "width": 64, "depth": 2, "heads": 4} | fields)
