"""How salient the cells of a view are, without labels and without a network: numpy over the whole batch.

Chin et al. take the last feature map of a ResNet-50 that was trained with ImageNet's labels. None of these is theirs;
the default is our choice.
"""

import math

import numpy as np

CELL_SIDE = 7  # pixels that a cell keeps at least where large views are reduced first
NEAREST = 5  # border cells that a cell is compared with
SPECTRUM = 64  # side of the image whose spectrum is computed
NEIGHBORHOODS = (12, 24, 48, 28, 56, 112)  # pixels, half-widths, at FULL_SIDE
FULL_SIDE = 224
CENTER_SIGMA = 2.0  # cells


def activation(images: np.ndarray, grid: int, provider: str) -> np.ndarray:
    """(B, grid, grid) float32 of views (B, H, W, C) uint8: larger is more salient; only the order and spread count.

    provider: one of PROVIDERS. The grid divides H and W. Other than three channels are taken as gray.
    """
    return PROVIDERS[provider](images, grid).astype(np.float32)


def boundary(images: np.ndarray, grid: int) -> np.ndarray:
    """How unlike a cell is to the cells of the border: in color, its spread, and texture (our choice of default).

    f = mean and std of Lab, mean |dx| and |dy| of L; a cell's value is the mean of the 5 smallest distances between
    its f and those of the other cells of the border.
    """
    features = _cell_features(_lab(_planes(images, grid)), grid)
    b, _, d = features.shape
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    border = np.flatnonzero((rows % (grid - 1) == 0) | (columns % (grid - 1) == 0))
    squared = np.zeros((b, grid * grid, len(border)), np.float32)
    for k in range(d):
        squared += (features[:, :, None, k] - features[:, None, border, k]) ** 2
    squared[:, border, np.arange(len(border))] = np.inf
    nearest = min(NEAREST, len(border) - 1)
    smallest = np.partition(squared, nearest - 1, axis=2)[..., :nearest]
    return np.sqrt(smallest).mean(axis=2).reshape(b, grid, grid)


def spectral_residual(images: np.ndarray, grid: int) -> np.ndarray:
    """What of the log spectrum its neighborhood does not predict (Hou and Zhang 2007), in OpenCV's recipe.

    Grey, 64 x 64 bilinear, log amplitude less its 3x3 mean, back with the phase, magnitude, Gaussian 5x5 of sigma 8,
    squared, over its maximum, resized to the view, averaged in each cell. 1e-8 is added before the logarithm.
    """
    rows = _sampled(images, SPECTRUM, axis=1)
    small = _sampled(_grayscale([rows[..., k] for k in range(rows.shape[-1])]), SPECTRUM, axis=2)
    spectrum = np.fft.fft2(small)
    magnitude = np.abs(spectrum) + np.float32(1e-8)
    amplitude = np.log(magnitude)
    residual = np.exp(amplitude - _filtered(amplitude, np.full(3, 1 / 3)))
    back = np.abs(np.fft.ifft2(spectrum * (residual / magnitude)))
    salient = _filtered(back, _gaussian(5, 8.0)) ** 2
    salient /= np.maximum(salient.max(axis=(1, 2), keepdims=True), 1e-30)
    # Resizing to the view and averaging over cells are linear in each direction: one small matrix each.
    back = np.eye(SPECTRUM, dtype=np.float32)
    down, across = (_mean_of_cells(side, grid) @ _sampled(back, side, axis=0) for side in images.shape[1:3])
    return np.einsum("gh,bhw,kw->bgk", down, salient, across, optimize=True)


def fine_grained(images: np.ndarray, grid: int) -> np.ndarray:
    """Center against surround at six scales (Montabone and Soto 2010), after OpenCV's recipe.

    Grey, smoothed twice; for each neighborhood the pixel less the mean around it; positive and negative parts each
    summed over the scales, each over its maximum, added; averaged in each cell. Neighborhoods shrink with the view,
    and large views are reduced instead of smoothed: our choice.
    """
    gray = _grayscale(_planes(images, grid))
    for _ in range(2 if gray.shape[1:] == images.shape[1:3] else 0):
        gray = _filtered(gray, np.array([0.25, 0.5, 0.25]))
    parts = np.zeros((2, *gray.shape), np.float32)
    for half in NEIGHBORHOODS:
        difference = gray - _surround(gray, max(1, round(half * min(gray.shape[1:]) / FULL_SIDE)))
        parts += np.stack([np.maximum(difference, 0.0), np.maximum(-difference, 0.0)])
    parts /= np.maximum(parts.max(axis=(2, 3), keepdims=True), 1e-12)
    return _pooled(parts.sum(axis=0), grid)


def center(images: np.ndarray, grid: int) -> np.ndarray:
    """A Gaussian around the center: a bias of photographs, not of random crops."""
    y, x = np.mgrid[:grid, :grid] - (grid - 1) / 2
    return np.tile(np.exp(-(x**2 + y**2) / (2 * CENTER_SIGMA**2)), (len(images), 1, 1))


def uniform(images: np.ndarray, grid: int) -> np.ndarray:
    """Every cell alike: all are salient, and masks do not depend on the image."""
    return np.ones((len(images), grid, grid), np.float32)


PROVIDERS = {
    "boundary": boundary,
    "spectral_residual": spectral_residual,
    "fine_grained": fine_grained,
    "center": center,
    "uniform": uniform,
}


def _planes(images, grid):
    """[(B, H, W) float32 a channel], 0..255, large views averaged over blocks of pixels: CELL_SIDE pixels a cell stay.

    One plane after the other: numpy is slow where the innermost axis has three elements.
    """
    b, height, width, c = images.shape
    side = math.gcd(height // grid, width // grid)
    f = max(d for d in range(1, side + 1) if d == 1 or (side % d == 0 and side // d >= CELL_SIDE))
    rows = images.reshape(b, height // f, f, width * c).sum(axis=2, dtype=np.uint16)
    planes = (rows[..., k::c] for k in range(c))
    return [sum(plane[..., i::f].astype(np.float32) for i in range(f)) / np.float32(f * f) for plane in planes]


def _grayscale(planes):
    """(B, H, W): by luminance of three channels (ITU-R 601), otherwise the mean."""
    weights = (0.299, 0.587, 0.114) if len(planes) == 3 else [1 / len(planes)] * len(planes)
    return sum(np.float32(w) * plane for w, plane in zip(weights, planes, strict=True))


_LEVELS = np.arange(256) / 255.0
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)
# sRGB's primaries to XYZ, each over the white point D65.
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_XYZ = (_XYZ / [[0.950456], [1.0], [1.088754]]).astype(np.float32)
# The curve of Lab at 2^16 levels of light: many times as fast as a cube root.
_LIGHT = np.arange(2**16) / (2**16 - 1)
_CURVE = np.where(_LIGHT > 0.008856, np.cbrt(_LIGHT), 7.787 * _LIGHT + 16 / 116).astype(np.float32)


def _lab(planes):
    """[L, a, b] of CIE Lab, each (B, H, W) float32; other than three channels: [L]."""
    light = [_LINEAR[(plane + np.float32(0.5)).astype(np.uint8)] for plane in planes]
    if len(planes) != 3:
        return [116 * _curve(sum(light) / len(planes)) - 16]
    x, y, z = (_curve(sum(w * plane for w, plane in zip(row, light, strict=True))) for row in _XYZ)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def _curve(light):
    return _CURVE[np.minimum(light * np.float32(2**16 - 1) + np.float32(0.5), np.float32(2**16 - 1)).astype(np.uint16)]


def _cell_features(planes, grid):
    """(B, G * G, 2 C + 2): mean and std of every plane, mean absolute steps of the first down and across."""
    means = [_pooled(plane, grid) for plane in planes]
    squares = [_pooled(plane**2, grid) for plane in planes]
    stds = [np.sqrt(np.maximum(square - mean**2, 0)) for square, mean in zip(squares, means, strict=True)]
    light = planes[0]
    b, height, width = light.shape
    # A difference across the border of two cells belongs to neither.
    cells = light.reshape(b, grid, height // grid, width)
    down = np.abs(cells[:, :, 1:] - cells[:, :, :-1]).sum(axis=2) @ _mean_of_cells(width, grid).T
    across = _sum_of_rows(np.abs(light[..., 1:] - light[..., :-1]), grid) @ _mean_of_steps(width, grid).T
    texture = [down / max(height // grid - 1, 1), across / (height // grid)]
    return np.stack(means + stds + texture, axis=-1).reshape(b, grid * grid, -1)


def _pooled(plane, grid):
    """(B, H, W) -> (B, G, G): the mean over every cell."""
    return _sum_of_rows(plane, grid) @ _mean_of_cells(plane.shape[2], grid).T * np.float32(grid / plane.shape[1])


def _sum_of_rows(plane, grid):
    """(B, H, W) -> (B, G, W)."""
    b, height, width = plane.shape
    return plane.reshape(b, grid, height // grid, width).sum(axis=2)


def _mean_of_cells(side: int, grid: int) -> np.ndarray:
    """(G, side) float32: what averages the pixels of every cell."""
    return np.repeat(np.eye(grid, dtype=np.float32), side // grid, axis=1) * np.float32(grid / side)


def _mean_of_steps(side: int, grid: int) -> np.ndarray:
    """(G, side - 1) float32: what averages the steps between neighbors of one cell."""
    cell = np.arange(side) // (side // grid)
    inside = (np.arange(grid)[:, None] == cell[:-1]) & (cell[:-1] == cell[1:])
    return inside.astype(np.float32) / np.float32(max(side // grid - 1, 1))


def _filtered(x, weights):
    """(B, H, W) under a separable filter of odd length, the border reflected without repeating the edge."""
    radius = len(weights) // 2
    for axis in (1, 2):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        lines = np.moveaxis(np.pad(x, padding, mode="reflect"), axis, 0)
        taps = (w * lines[k : k + x.shape[axis]] for k, w in enumerate(weights.astype(np.float32)))
        x = np.moveaxis(sum(taps), 0, axis)
    return x


def _gaussian(taps: int, sigma: float) -> np.ndarray:
    weights = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def _sampled(x: np.ndarray, length: int, axis: int) -> np.ndarray:
    """One axis resized, float32: linear interpolation between pixel centers, not antialiased."""
    source = x.shape[axis]
    place = np.clip((np.arange(length) + 0.5) * source / length - 0.5, 0, source - 1)
    low = place.astype(int)
    fraction = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return x.take(low, axis) * (1 - fraction) + x.take(np.minimum(low + 1, source - 1), axis) * fraction


def _surround(gray: np.ndarray, half: int) -> np.ndarray:
    """(B, H, W): mean over the pixels from half - 1 before to half after in both directions, without the pixel."""
    total, count = gray, np.ones((1, 1, 1), np.int64)
    for axis in (1, 2):
        length = gray.shape[axis]
        summed = np.cumsum(total, axis=axis, dtype=np.float64)
        summed = np.concatenate([np.zeros_like(summed.take([0], axis=axis)), summed], axis=axis)
        first = np.clip(np.arange(length) - half + 1, 0, length)
        last = np.clip(np.arange(length) + half + 1, 0, length)
        total = summed.take(last, axis=axis) - summed.take(first, axis=axis)
        count = count * (last - first).reshape([-1 if a == axis else 1 for a in range(3)])
    return ((total - gray) / np.maximum(count - 1, 1)).astype(np.float32)
