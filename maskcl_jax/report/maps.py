"""Features on a plane: PCA, and UMAP where it is installed."""

import numpy as np

from maskcl_jax.errors import import_problem


def pca(values: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """(n, D) -> (the two principal components (n, 2) in 0..1, their fractions of the variance)."""
    centered = values - values.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    variance = singular**2 / max(float((singular**2).sum()), 1e-30)
    return unit_square(left[:, :2] * singular[:2]), (float(variance[0]), float(variance[1]))


def umap_problem() -> str:
    """Why umap-learn cannot be used, "" where it can."""
    return import_problem("umap", "UMAP")


def umap(values: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, 2) in 0..1 by UMAP with its own defaults, under the cosine."""
    import umap as umap_learn

    reducer = umap_learn.UMAP(metric="cosine", random_state=0, n_jobs=1, n_neighbors=min(15, len(values) - 1))
    return unit_square(reducer.fit_transform(values))


def unit_square(points: np.ndarray) -> np.ndarray:
    """Each axis moved and scaled to 0..1."""
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-12)
