"""Statistics of many images, which show a wiped background, one layout for all prompts, or a drift of the look."""

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .world import Array

_FILTERS = 24


def texture_features(images: NDArray[np.uint8]) -> Array:
    """Compute features of images, uint8 (N, S, S, 3) → (N, 54): responses of fixed random filters, and colours."""
    return np.stack([_features_of(image) for image in images])


def frechet_distance(features: Array, reference: Array) -> float:
    """Compute the Fréchet distance of features (N, F) to reference ones (M, F), in units of the reference's spread.

    Compare equal N only: the distance of a fresh sample to its own kind shrinks as N grows.
    """
    scale = reference.std(0) + 1e-6
    a, b = features / scale, reference / scale
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    # The eigenvalues of a product of two covariances are real and not negative, up to rounding.
    shared = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)


def diversity(images: NDArray[np.uint8]) -> float:
    """Compute the mean distance of two images of one prompt, uint8 (G, S, S, 3), in grey levels; 0 for copies.

    It compares thumbnails of 8 x 8, so that layout and light count and grain does not.
    """
    count, size = len(images), images.shape[1]
    if count < 2:
        raise ValueError("diversity needs at least two images of a prompt")
    thumbs = images.reshape(count, 8, size // 8, 8, size // 8, 3).mean((2, 4)).reshape(count, -1)
    first, second = np.triu_indices(count, 1)
    return float(np.sqrt(((thumbs[first] - thumbs[second]) ** 2).mean(1)).mean())


@cache
def _filters() -> Array:
    """(3 * 5 * 5, _FILTERS) random kernels without mean, of unit norm; they never change."""
    kernels = np.random.default_rng(0).normal(size=(_FILTERS, 3, 5, 5))
    kernels -= kernels.mean((2, 3), keepdims=True)
    kernels /= np.sqrt((kernels**2).sum((1, 2, 3), keepdims=True))
    return kernels.reshape(_FILTERS, -1).T.astype(np.float32)


def _features_of(image: NDArray[np.uint8]) -> Array:
    pixels = image.astype(np.float32) / 255
    windows = sliding_window_view(pixels, (5, 5), axis=(0, 1))[::2, ::2].reshape(-1, 75)
    response = abs(windows @ _filters())
    flat = pixels.reshape(-1, 3)
    return np.concatenate([response.mean(0), response.std(0), flat.mean(0), flat.std(0)])
