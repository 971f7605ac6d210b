"""PyTorch layers on the definitions of :mod:`bnbook.norms`, with the analytic gradient.

Each layer is a subclass of PyTorch's own layer of the same kind, with its arguments and its ``state_dict``;
tools for those work with these. What a layer does depends on ``self.training`` and on nothing else: not on
whether gradients are recorded. Inputs of half precision are computed in float32 and come out as they came
in. All norms share one function, :func:`normalize`.
"""

from bnbook.layers._batch import BatchNorm, normalize_by
from bnbook.layers._checks import let_values_diverge
from bnbook.layers._dyt import DyT
from bnbook.layers._groups import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from bnbook.layers._normalize import by_channel, moments, normalize, normalize_backward, pool, set_size
from bnbook.layers._relatives import (
    BatchRenorm,
    GhostBatchNorm,
    LpBatchNorm,
    Noise,
    NoisyBatchNorm,
    add_noise,
    lp_scale,
)
from bnbook.layers._weights import (
    EPS,
    RELU_GAIN,
    ScaledWSLinear,
    WSConv2d,
    WSLinear,
    clip_adaptively,
    clipped_gradient,
    scaled_standardized,
    standardized,
)

__all__ = [
    "EPS",
    "RELU_GAIN",
    "BatchNorm",
    "BatchRenorm",
    "DyT",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LpBatchNorm",
    "Noise",
    "NoisyBatchNorm",
    "RMSNorm",
    "ScaledWSLinear",
    "WSConv2d",
    "WSLinear",
    "add_noise",
    "by_channel",
    "clip_adaptively",
    "clipped_gradient",
    "let_values_diverge",
    "lp_scale",
    "moments",
    "normalize",
    "normalize_backward",
    "normalize_by",
    "pool",
    "scaled_standardized",
    "set_size",
    "standardized",
]
