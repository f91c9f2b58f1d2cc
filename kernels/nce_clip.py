"""The soft clip of the contrastive kernels: score = clip tanh(raw / clip), its exp and its slope.

SHIFTED needs no running maximum: with v = sigmoid(-2 raw / clip), exp(score - clip) is
exp(-2 clip v), which stays in range for clips up to 43, and the slope is 4 v (1 - v). TANH is for
larger clips. Kernels take a product, raw = scale * product, and two factors computed by the caller:

    steep  SHIFTED: 2 log2(e) scale / clip; TANH: scale / clip
    depth  SHIFTED: -2 log2(e) clip; TANH: clip
"""

import triton
import triton.language as tl

SHIFTED = tl.constexpr(0)
TANH = tl.constexpr(1)
NO_CLIP = tl.constexpr(2)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp_shifted(product, steep, depth):
    """exp(score - clip), for SHIFTED."""
    sigmoid = 1.0 / (1.0 + tl.exp2(steep * product))
    return tl.exp2(depth * sigmoid)


@triton.jit
def clipped(product, scale, steep, depth, CLIP: tl.constexpr):
    """The score, for TANH and NO_CLIP."""
    return depth * tanh(steep * product) if CLIP == TANH else product * scale


@triton.jit
def probability_and_slope(product, log_sum, scale, steep, depth, CLIP: tl.constexpr):
    """exp(score - log_sum), at most 1, and d score / d raw."""
    if CLIP == SHIFTED:
        sigmoid = 1.0 / (1.0 + tl.exp2(steep * product))
        # depth is -2 log2(e) clip: the exponent is log2(e) (clip - log_sum) + depth * sigmoid.
        exponent = depth * (sigmoid - 0.5) - log_sum * LOG2_E
        probability = tl.exp2(tl.minimum(exponent, 0.0))
        slope = 4.0 * sigmoid * (1.0 - sigmoid)
    elif CLIP == TANH:
        ratio = tanh(steep * product)
        probability = tl.exp2(tl.minimum(depth * ratio - log_sum, 0.0) * LOG2_E)
        slope = 1.0 - ratio * ratio
    else:
        probability = tl.exp2(tl.minimum(scale * product - log_sum, 0.0) * LOG2_E)
        slope = 1.0
    return probability, slope


@triton.jit
def own_score(product, scale, inverse_clip):
    """The score without cancellation; inverse_clip is 1 / clip, or 0 for no clip."""
    raw = product * scale
    bounded = tanh(raw * inverse_clip) / tl.where(inverse_clip > 0.0, inverse_clip, 1.0)
    return tl.where(inverse_clip > 0.0, bounded, raw)


@triton.jit
def log_probability(own, log_sum):
    """-log(1 + exp(log_sum - own)); 0 without negatives, where log_sum is -inf."""
    gap = log_sum - own
    decay = tl.exp2(-tl.abs(gap) * LOG2_E)
    series = decay * (1.0 - decay * (0.5 - decay * (0.33333333 - decay * (0.25 - decay * 0.2))))
    logarithm = tl.where(decay < 0.01, series, tl.log2(1.0 + decay) * LN_2)
    return -(tl.maximum(gap, 0.0) + logarithm)


@triton.jit
def tanh(x):
    """Hyperbolic tangent to about 2 ulp of float32, in instructions that every GPU has."""
    size = tl.abs(x)
    small = tl.minimum(size, 0.25)
    square = small * small
    series = 0.13333333 + square * (-0.05396825 + square * 0.021869488)
    near = small * (1.0 + square * (-0.33333333 + square * series))
    decay = tl.exp2(size * (-2.0 * LOG2_E))
    far = (1.0 - decay) / (1.0 + decay)
    result = tl.where(size < 0.25, near, far)
    return tl.where(x < 0.0, -result, result)
