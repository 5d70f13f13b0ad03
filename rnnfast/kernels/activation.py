"""The activations and their derivatives inside Triton kernels, in float32.

    relu          x <= 0 ? 0 : x, so that NaN passes as it does in torch
    tanh          x P(x^2) / Q(x^2), as in csrc/cpu/simd/activation.h: a third of an ulp
    tanh_exp      1 - 2 / (exp(2x) + 1): absolute error below 2e-7, for outputs that are rounded to float16
    tanh_approx   one instruction, relative error 2^-11, for outputs that are rounded to bfloat16 (2^-9)
    sigmoid       1 / (1 + exp(-x))
    softplus      max(x, 0) + log1p(exp(-|x|)), which does not overflow
    identity      x

Derivatives need only the value h: tanh' = 1 - h^2, relu' = [h > 0], sigmoid' = h (1 - h),
softplus' = 1 - exp(-h), identity' = 1.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, x)
    elif ACTIVATION == "tanh_approx":
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    elif ACTIVATION == "tanh_exp":
        return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    elif ACTIVATION == "softplus":
        return _softplus(x)
    elif ACTIVATION == "identity":
        return x
    else:
        tl.static_assert(ACTIVATION == "tanh")
        return _tanh(x)


@triton.jit
def _tanh(x):
    # tanh rounds to +-1 beyond 9.02. A comparison limits x, since minimum and maximum would drop a NaN.
    x = tl.where(x > 9.02, 9.02, x)
    x = tl.where(x < -9.02, -9.02, x)
    u = x * x
    p = u * 1.33175656527e-8 + 2.05824096219e-5
    p = p * u + 3.49397113197e-3
    p = p * u + 0.133796654851
    p = p * u + 0.999999979212
    q = u * 7.76140592895e-7 + 3.28298768874e-4
    q = q * u + 2.58708346112e-2
    q = q * u + 0.467129808039
    q = q * u + 1.0
    h = x * p / q
    # Keeps 1 - h^2 from going negative where rounding carries the quotient past 1.
    h = tl.where(h > 1.0, 1.0, h)
    return tl.where(h < -1.0, -1.0, h)


@triton.jit
def _softplus(x):
    # log(u) e / (u - 1) is log1p(e) without the digits of e that u = 1 + e has lost.
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.where(x <= 0.0, 0.0, x) + tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0)))


@triton.jit
def activation_backward(grad, h, ACTIVATION: tl.constexpr):
    """The gradient of the pre-activation, from the gradient of the output `h` and `h` itself."""
    if ACTIVATION == "relu":
        return tl.where(h <= 0.0, 0.0, grad)
    elif ACTIVATION == "sigmoid":
        return grad * (h * (1.0 - h))
    elif ACTIVATION == "softplus":
        # Near 0, where 1 - exp(-h) loses digits, the first terms of its series.
        series = h * (1.0 - h / 2.0 * (1.0 - h / 3.0 * (1.0 - h / 4.0)))
        return grad * tl.where(h < 0.0625, series, 1.0 - tl.exp(-h))
    elif ACTIVATION == "identity":
        return grad
    else:
        return grad * (1.0 - h * h)


def form_of(nonlinearity: str, dtype: torch.dtype) -> str:
    """The form of the activation that is exact enough for outputs of `dtype`."""
    if nonlinearity != "tanh" or dtype is torch.float32:
        return nonlinearity
    # The instruction is NVIDIA's.
    return "tanh_approx" if dtype is torch.bfloat16 and torch.version.hip is None else "tanh_exp"
