"""Shifts of images, which change p(x) and leave the label as it is, and a first remedy.

Each function takes images of one of the shapes in which the book uses them, (N, D) with D = H * W for
square images, (N, H, W) or (N, C, H, W), in float32 or float64, and returns new images of the same shape and
dtype. Pixels lie in [0, 1] with 0 for the background, as :mod:`bnbook.data` returns them; nothing is clipped.

:data:`SHIFTS` names the shifts and strengths that the chapters compare. The idea of such a list is that of
[hendrycks2019]_, who apply 15 corruptions at five strengths to the test images of ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook import norms
from bnbook._checks import check_finite, check_images, check_not_negative, check_positive, check_whole
from bnbook._extra import book_extra

Array = NDArray[np.floating[Any]]


def affine(x: Array, scale: float, offset: float = 0.0) -> Array:
    """Change contrast and brightness: each pixel becomes ``scale * pixel + offset``.

    With a scale below 1 the differences between pixels shrink; below 0 bright and dark change places. An
    offset is what haze or stray light adds.

    >>> affine(np.array([[0.0, 0.5, 1.0]]), 0.5, 0.25)
    array([[0.25, 0.5 , 0.75]])
    """
    check_images(x)
    check_finite(scale=scale, offset=offset)
    return x.dtype.type(scale) * x + x.dtype.type(offset)


def invert(x: Array) -> Array:
    """Turn bright into dark, 1 - x: black ink on white paper instead of white on black.

    >>> invert(np.array([[0.0, 0.25, 1.0]]))
    array([[1.  , 0.75, 0.  ]])
    """
    return affine(x, -1.0, 1.0)


def noise(x: Array, std: float, rng: np.random.Generator) -> Array:
    """Add independent Gaussian noise of mean 0 to every pixel, without clipping.

    Two calls with one generator draw twice; a seed in its place is refused, as it would draw the same noise
    at every call.

    >>> grainy = noise(np.zeros((100, 28, 28)), 0.3, np.random.default_rng(0))
    >>> print(f"{grainy.std():.2f}")
    0.30
    """
    check_images(x)
    check_not_negative(std=std)
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: got {rng!r}, expected a generator such as numpy.random.default_rng(0)")
    return x + rng.normal(0.0, std, x.shape).astype(x.dtype)


def translate(x: Array, down: int = 0, right: int = 0, fill: float = 0.0) -> Array:
    """Move images by whole pixels (negative: up and left); what leaves the frame is lost.

    Pixels that come into the frame have the value `fill`.

    >>> translate(np.array([[[1.0, 2, 3]]]), right=1)
    array([[[0., 1., 2.]]])
    """
    check_images(x)
    check_finite(fill=fill)
    check_whole(-math.inf, down=down, right=right)
    old = _planes(x)
    new = np.full_like(old, fill)
    (to_rows, from_rows), (to_columns, from_columns) = _overlap(down), _overlap(right)
    new[..., to_rows, to_columns] = old[..., from_rows, from_columns]
    return new.reshape(x.shape)


def rotate(x: Array, degrees: float, fill: float = 0.0) -> Array:
    """Turn images counterclockwise about their centre, with linear interpolation between pixels.

    >>> rotate(np.array([[[1.0, 2], [3, 4]]]), 90).round()
    array([[[2., 4.],
            [1., 3.]]])
    """
    with book_extra():  # here, so that the other shifts need NumPy alone
        from scipy import ndimage

    check_images(x)
    check_finite(degrees=degrees, fill=fill)
    turned: Array = ndimage.rotate(
        _planes(x), degrees, axes=(-2, -1), reshape=False, order=1, mode="constant", cval=fill
    )
    return turned.reshape(x.shape)


def standardize(x: Array, eps: float = 1e-8) -> Array:
    """Standardize every image by itself: subtract the mean of its pixels, divide by their deviation.

    The image, with all its channels, is the index set of :func:`bnbook.norms.standardize`. The result does
    not change when a pixel x becomes a x + b with a > 0, apart from rounding and `eps`, which makes an image
    without contrast 0.

    >>> standardize(np.array([[0.2, 0.4], [0.6, 0.8], [0.5, 0.5]])).round(3)
    array([[-1.,  1.],
           [-1.,  1.],
           [ 0.,  0.]])
    """
    check_images(x)
    check_positive(eps=eps)
    return norms.standardize(x, tuple(range(1, x.ndim)), eps)[0]


def _planes(x: Array) -> Array:
    """The images with rows and columns as their last two axes."""
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


SHIFTS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "none": lambda x, rng: affine(x, 1.0),
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
