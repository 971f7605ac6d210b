"""Shifts of images, which change p(x) and leave the label as it is, and a first remedy.

Each function takes images of one of the shapes in which the book uses them, (N, D) with D = H * W for
square images, (N, H, W) or (N, C, H, W), and returns new images of the same shape and dtype. Pixels lie in
[0, 1] with 0 for the background, as :mod:`bnbook.data` returns them; nothing is clipped.

:data:`SHIFTS` names the shifts and strengths that the chapters compare. The idea of such a list is that of
[hendrycks2019]_, who apply 15 corruptions at five strengths to the test images of ImageNet.

.. [hendrycks2019] D. Hendrycks, T. Dietterich. Benchmarking Neural Network Robustness to Common
   Corruptions and Perturbations. arXiv:1903.12261.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bnbook import norms

Array = NDArray[np.floating[Any]]

__all__ = ["SHIFTS", "affine", "invert", "noise", "rotate", "standardize", "translate"]


def affine(x: Array, scale: float, offset: float = 0.0) -> Array:
    """Change contrast and brightness: each pixel becomes ``scale * pixel + offset``.

    Parameters
    ----------
    x : ndarray of shape (N, D), (N, H, W) or (N, C, H, W)
        Images, float32 or float64.
    scale : float
        Contrast. Below 1 the differences between pixels shrink; below 0 bright and dark change places.
    offset : float
        Brightness that is added to every pixel, as haze or stray light adds it.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or dtype, or a number that is not finite.
    """
    x = _images(x)
    _finite(scale=scale, offset=offset)
    return x.dtype.type(scale) * x + x.dtype.type(offset)


def invert(x: Array) -> Array:
    """Turn bright into dark, 1 - x: black ink on white paper instead of white on black.

    Parameters
    ----------
    x : ndarray of shape (N, D), (N, H, W) or (N, C, H, W)
        Images, float32 or float64.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x`.

    Raises
    ------
    ValueError
        As :func:`affine`.
    """
    return affine(x, -1.0, 1.0)


def noise(x: Array, std: float, rng: np.random.Generator) -> Array:
    """Add independent Gaussian noise of mean 0 to every pixel, without clipping.

    Parameters
    ----------
    x : ndarray of shape (N, D), (N, H, W) or (N, C, H, W)
        Images, float32 or float64.
    std : float
        Standard deviation of the noise, 0 or larger.
    rng : numpy.random.Generator
        Draws the noise; two calls with one generator draw twice.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x`; pixels may be negative or above 1.

    Raises
    ------
    ValueError
        As :func:`affine`, or if `rng` is no generator: a seed would draw the same noise at every call.
    """
    x = _images(x)
    _finite(std=std)
    if std < 0:
        raise ValueError(f"std: got {std}, expected 0 or larger")
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: got {rng!r}, expected a generator such as numpy.random.default_rng(0)")
    drawn: Array = rng.normal(0.0, std, x.shape)
    return x + drawn.astype(x.dtype)


def translate(x: Array, down: int = 0, right: int = 0, fill: float = 0.0) -> Array:
    """Move images by whole pixels; what leaves the frame is lost.

    Parameters
    ----------
    x : ndarray of shape (N, D), (N, H, W) or (N, C, H, W)
        Images, float32 or float64; with (N, D) square ones.
    down, right : int
        Pixels to move by; negative numbers move up and left.
    fill : float
        Value of the pixels that come into the frame.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x`.

    Raises
    ------
    ValueError
        As :func:`affine`; for a D that is no square; for a move that is no whole number.
    """
    planes = _planes(x)
    _finite(fill=fill)
    for name, by in (("down", down), ("right", right)):
        if not isinstance(by, int | np.integer):
            raise ValueError(f"{name}: got {by!r}, expected a whole number of pixels")
    moved = np.full_like(planes, fill)
    (to_rows, from_rows), (to_columns, from_columns) = _overlap(down), _overlap(right)
    moved[..., to_rows, to_columns] = planes[..., from_rows, from_columns]
    return moved.reshape(np.shape(x))


def rotate(x: Array, degrees: float, fill: float = 0.0) -> Array:
    """Turn images counterclockwise about their centre, with linear interpolation between pixels.

    Parameters
    ----------
    x : ndarray of shape (N, D), (N, H, W) or (N, C, H, W)
        Images, float32 or float64; with (N, D) square ones.
    degrees : float
        Angle.
    fill : float
        Value of the pixels that come into the frame.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x`.

    Raises
    ------
    ValueError
        As :func:`translate`.
    """
    planes = _planes(x)
    _finite(degrees=degrees, fill=fill)
    turned: Array = ndimage.rotate(
        planes, degrees, axes=(-2, -1), reshape=False, order=1, mode="constant", cval=fill
    )
    return turned.reshape(np.shape(x))


def standardize(x: Array, eps: float = 1e-8) -> Array:
    """Standardize every image by itself: subtract the mean of its pixels, divide by their deviation.

    The image is the index set of :func:`bnbook.norms.standardize`. The result does not change when a pixel x
    becomes a x + b with a > 0, apart from rounding and `eps`.

    Parameters
    ----------
    x : ndarray of shape (N, D), (N, H, W) or (N, C, H, W)
        Images, float32 or float64. The channels of an image share one mean and one deviation.
    eps : float
        Added to the variance, under the root, so that an image without contrast becomes 0.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x`; each image has mean 0 and variance var / (var + eps).

    Raises
    ------
    ValueError
        As :func:`affine`, or for an `eps` that is not a positive number.
    """
    x = _images(x)
    if not 0 < eps < math.inf:
        raise ValueError(f"eps: got {eps}, expected a positive number")
    return norms.standardize(x, tuple(range(1, x.ndim)), eps)[0]


SHIFTS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "none": lambda x, rng: _images(x).copy(),
    "dark": lambda x, rng: affine(x, 0.3),
    "hazy": lambda x, rng: affine(x, 0.6, 0.4),
    "dark, hazy": lambda x, rng: affine(x, 0.3, 0.35),
    "noise 0.3": lambda x, rng: noise(x, 0.3, rng),
    "noise 0.5": lambda x, rng: noise(x, 0.5, rng),
    "moved 2": lambda x, rng: translate(x, right=2),
    "moved 4": lambda x, rng: translate(x, right=4),
    "turned 20": lambda x, rng: rotate(x, 20),
    "turned 40": lambda x, rng: rotate(x, 40),
    "inverted": lambda x, rng: invert(x),
}
"""The shifts that the chapters compare, by name. Each is a function of the images and a generator.

Noise alone draws from the generator. The strengths are chosen for 28x28 images with pixels in [0, 1]
("moved" in pixels to the right; "turned" in degrees): apply a shift before the images are made smaller.
"""


# --------------------------------------------------------------------------- small shared parts


def _images(x: Array) -> Array:
    """Return `x` as an array, or say what is wrong with it."""
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float64):
        raise ValueError(f"x: got dtype {x.dtype}, allowed are float32 and float64")
    if not 2 <= x.ndim <= 4 or 0 in x.shape[1:]:
        raise ValueError(f"x: got shape {x.shape}, expected (N, D), (N, H, W) or (N, C, H, W)")
    if not np.isfinite(x).all():
        raise ValueError("x: got NaN or infinity, all pixels must be finite")
    return x


def _planes(x: Array) -> Array:
    """Return the images with rows and columns as their last two axes."""
    x = _images(x)
    if x.ndim > 2:
        return x
    side = math.isqrt(x.shape[1])
    if side * side != x.shape[1]:
        raise ValueError(f"x: got {x.shape[1]} pixels an image (shape {x.shape}), expected a square number")
    return x.reshape(-1, side, side)


def _overlap(by: int) -> tuple[slice, slice]:
    """Along one axis: where the pixels that stay in the frame go to, and where they come from."""
    if by >= 0:
        return slice(by, None), slice(None, -by or None)
    return slice(None, by), slice(-by, None)


def _finite(**numbers: float) -> None:
    """Say which number is not finite."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: got {value}, expected a finite number")
