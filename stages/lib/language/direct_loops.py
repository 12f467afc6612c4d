"""What a block does between its products, in compiled loops that read and write every number once.

bfloat16 comes as its bits (uint16): they are widened to float32, and what comes out is rounded once, to the nearest.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any, TypeVar

import numpy as np
from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def exact(function: Function) -> Function:
    """The function as machine code, kept on disk, that rounds after every operation as PyTorch does."""
    kernel: Function = njit(nogil=True, cache=True)(unwrap(function))
    return kernel


@exact
def _widen(bits: np.ndarray, wide: np.ndarray) -> None:
    for at in range(len(bits)):
        wide[at] = np.uint32(bits[at]) << np.uint32(16)


@exact
def _narrow(wide: np.ndarray, bits: np.ndarray) -> None:
    """To the nearest, and of two equally near to the even one; what is not finite stays so, if not the same."""
    for at in range(len(bits)):
        even = (wide[at] >> np.uint32(16)) & np.uint32(1)
        bits[at] = np.uint16((wide[at] + np.uint32(0x7FFF) + even) >> np.uint32(16))


@exact
def turn(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray) -> None:
    """Rotary positions: `out` [batch, head, pos, d_head] is x cos + (-second half, first half of x) sin.

    `x` is [batch, pos, head, d_head], `cos` and `sin` are [pos, d_head]; all float32.
    """
    half = x.shape[3] // 2
    for window in range(x.shape[0]):
        for head in range(x.shape[2]):
            for pos in range(x.shape[1]):
                for at in range(half):
                    first, second = x[window, pos, head, at], x[window, pos, head, half + at]
                    out[window, head, pos, at] = first * cos[pos, at] - second * sin[pos, at]
                    out[window, head, pos, half + at] = second * cos[pos, half + at] + first * sin[pos, half + at]


@exact
def turn_bits(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray) -> None:
    """The same for `x` and `out` in the bits of bfloat16."""
    d_head = x.shape[3]
    half = d_head // 2
    bits, turned = np.empty(d_head, np.uint32), np.empty(d_head, np.float32)
    wide = bits.view(np.float32)
    for window in range(x.shape[0]):
        for head in range(x.shape[2]):
            for pos in range(x.shape[1]):
                _widen(x[window, pos, head], bits)
                for at in range(half):
                    turned[at] = wide[at] * cos[pos, at] - wide[half + at] * sin[pos, at]
                    turned[half + at] = wide[half + at] * cos[pos, half + at] + wide[at] * sin[pos, half + at]
                _narrow(turned.view(np.uint32), out[window, head, pos])


@exact
def norm_bits(x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray) -> None:
    """RMSNorm of rows: x weight / sqrt(mean x^2 + eps); `x` and `out` in the bits of bfloat16, `weight` float32."""
    d_in = x.shape[1]
    bits, normed = np.empty(d_in, np.uint32), np.empty(d_in, np.float32)
    wide = bits.view(np.float32)
    for row in range(len(x)):
        _widen(x[row], bits)
        sums = np.zeros(16, np.float32)
        whole = d_in - d_in % 16
        for first in range(0, whole, 16):
            for lane in range(16):
                sums[lane] += wide[first + lane] * wide[first + lane]
        total = sums.sum()
        for at in range(whole, d_in):
            total += wide[at] * wide[at]
        scale = np.float32(1.0 / np.sqrt(total / d_in + eps))
        for at in range(d_in):
            normed[at] = wide[at] * scale * weight[at]
        _narrow(normed.view(np.uint32), out[row])


@exact
def look_up(x: np.ndarray, table: np.ndarray) -> None:
    """Replace numbers by what a table of all bfloat16 numbers has for them; all are bits, `x` in rows."""
    for row in range(len(x)):
        for at in range(x.shape[1]):
            x[row, at] = table[x[row, at]]


@exact
def gate_bits(x: np.ndarray, table: np.ndarray, up: np.ndarray) -> None:
    """Replace numbers by those of `up` times what a table of all bfloat16 numbers has for them.

    `x` and `up` are rows in the bits of bfloat16, the table is float32.
    """
    bits, product = np.empty(x.shape[1], np.uint32), np.empty(x.shape[1], np.float32)
    wide = bits.view(np.float32)
    for row in range(len(x)):
        _widen(up[row], bits)
        for at in range(x.shape[1]):
            product[at] = table[x[row, at]] * wide[at]
        _narrow(product.view(np.uint32), x[row])
