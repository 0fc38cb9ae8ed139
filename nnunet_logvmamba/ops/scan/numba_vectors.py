"""A vector type for numba, so that a kernel says what goes through the processor's vector units instead of hoping.

numba leaves vectorising to LLVM, which gives up where it cannot prove that two arrays do not overlap. A ``Vector`` is
``LANES`` numbers of one type in LLVM's own vector type: arithmetic on it is vector arithmetic by construction, on any
processor, split or padded to its register width by LLVM.

Inside compiled code::

    x = load(array, index)                     # LANES numbers from a contiguous one-dimensional array
    y = exp2(x * 0.5) + 1.0                    # +, -, *, / with vectors and numbers
    y = where_above(x, limit, y, otherwise)    # y where x > limit; otherwise where it is not, also where x is NaN
    store(array, index, y)
    number = total(y)                          # sum of the lanes
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model
from numpy.typing import NDArray

LANES = 16
# "contract" permits fused multiply-add; no flag reorders sums or assumes that there is no NaN.
_FLAGS = ("contract",)
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


class Vector(types.Type):
    """numba's name for ``LANES`` floats of one type."""

    def __init__(self, scalar: types.Float):
        self.scalar = scalar
        super().__init__(name=f"Vector({scalar})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        number = ir.DoubleType() if vector.scalar == types.float64 else ir.FloatType()
        super().__init__(manager, vector, ir.VectorType(number, LANES))


def _splat(builder, number):
    """The vector that holds ``number`` in every lane."""
    kind = ir.VectorType(number.type, LANES)
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _as_vector(context, builder, vector, kind, value):
    """``value`` of numba type ``kind`` as a vector: itself, or the number in every lane."""
    return value if isinstance(kind, Vector) else _splat(builder, context.cast(builder, value, kind, vector.scalar))


def _call(builder, name, result, arguments, **options):
    """Call LLVM's own function of that name for these types."""
    vector = arguments[-1].type
    bits = 64 if vector.element == ir.DoubleType() else 32
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f{bits}")
    return builder.call(function, arguments, **options)


def _place(context, builder, kind, array, index, vector):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(typing, array, index):
    """``LANES`` numbers from ``array[index]`` on."""

    def generate(context, builder, sig, arguments):
        vector = context.get_value_type(sig.return_type)
        place = _place(context, builder, sig.args[0], *arguments, vector)
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing, array, index, vector):
    """Write ``vector`` to ``array[index]`` and on."""

    def generate(context, builder, sig, arguments):
        place = _place(context, builder, sig.args[0], *arguments[:2], arguments[2].type)
        builder.store(arguments[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def total(typing, vector):
    """Sum of the lanes, in an order that depends on nothing but ``LANES``."""

    def generate(context, builder, sig, arguments):
        number = arguments[0].type.element
        zero = ir.Constant(number, -0.0)
        return _call(builder, "vector.reduce.fadd", number, [zero, arguments[0]], fastmath=("reassoc",))

    return vector.scalar(vector), generate


@intrinsic
def where_above(typing, vector, limit, above, otherwise):
    """Lane by lane ``above`` where ``vector > limit``, else ``otherwise``; NaN is never above."""

    def generate(context, builder, sig, arguments):
        x, least, yes, no = (
            _as_vector(context, builder, sig.return_type, kind, value) for kind, value in zip(sig.args, arguments)
        )
        return builder.select(builder.fcmp_ordered(">", x, least), yes, no)

    result = next(kind for kind in (vector, limit, above, otherwise) if isinstance(kind, Vector))
    return result(vector, limit, above, otherwise), generate


def _define_arithmetic(operation: Callable, instruction: str) -> None:
    @infer_global(operation)
    class _(AbstractTemplate):
        def generic(self, arguments, keywords):
            vectors = [kind for kind in arguments if isinstance(kind, Vector)]
            others = [kind for kind in arguments if not isinstance(kind, Vector)]
            if vectors and len(set(vectors)) == 1 and all(isinstance(kind, types.Float) for kind in others):
                return signature(vectors[0], *arguments)
            return None

    def generate(context, builder, sig, arguments):
        a, b = (_as_vector(context, builder, sig.return_type, kind, value) for kind, value in zip(sig.args, arguments))
        return getattr(builder, instruction)(a, b, flags=_FLAGS)

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(operation, *kinds)(generate)


_define_arithmetic(operator.add, "fadd")
_define_arithmetic(operator.sub, "fsub")
_define_arithmetic(operator.mul, "fmul")
_define_arithmetic(operator.truediv, "fdiv")


def _polynomial(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]], degree: int, low: float, high: float
) -> tuple[float, ...]:
    """Coefficients, lowest first, of the polynomial through ``function`` at the Chebyshev points of an interval.

    Its largest error is within a small factor of the smallest that any polynomial of the degree has.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    at_points: Callable = lambda t: function(middle + half * t)  # noqa: E731 - NumPy's stubs say that it gets one point
    series = np.polynomial.chebyshev.chebinterpolate(at_points, degree)
    whole = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(series))
    return tuple(map(float, whole(np.polynomial.Polynomial([-middle / half, 1 / half])).coef))


def _exp2_slope(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2 ** x - 1) / x; the nodes of an odd number of points include 0, where it is ln 2."""
    return np.divide(np.expm1(x * LN_2), x, out=np.full_like(x, LN_2), where=x != 0)


def _atanh_rest(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(atanh(w) / w - 1) / s for s = w ** 2, by its power series: 1 / 3 + s / 5 + s ** 2 / 7 + …"""
    return sum((s**k / (2 * k + 3) for k in range(40)), np.zeros_like(s))


# Degrees that leave errors below the rounding of the type: 2e-9 and 4e-9 of float32's, 1e-17 of float64's results.
_EXP2 = {32: _polynomial(_exp2_slope, 5, -0.5, 0.5), 64: _polynomial(_exp2_slope, 11, -0.5, 0.5)}
_ATANH = {32: _polynomial(_atanh_rest, 3, 0.0, 1 / 9), 64: _polynomial(_atanh_rest, 11, 0.0, 1 / 9)}
# ln 2 in two parts, the first with so few bits that its product with an exponent is exact.
_LN_2_PARTS = {32: (0.693359375, -2.1219444005469058e-4), 64: (0.693145751953125, 1.42860682030941723e-6)}
# Exponents that give 0 and infinity, the bias of the exponent and the number of bits below it.
_FLOAT = {32: (-127.0, 128.0, 127, 23), 64: (-1023.0, 1024.0, 1023, 52)}


def _horner(builder, coefficients, x):
    def constant(number):
        return ir.Constant(x.type, [number] * LANES)

    y = constant(coefficients[-1])
    for number in coefficients[-2::-1]:
        y = builder.fadd(builder.fmul(y, x, flags=_FLAGS), constant(number), flags=_FLAGS)
    return y


def _power(builder, x, bits, parts=None):
    """2 ** x, or e ** x with ``parts``, the two parts of ln 2.

    With k the nearest whole number and f the rest, 2 ** k is made of its bits and 2 ** f = 1 + f * polynomial(f), so
    that it is exact at 0: a decay close to 1 must not be biased.
    """

    def constant(number):
        return ir.Constant(x.type, [number] * LANES)

    low, high, bias, fraction = _FLOAT[bits]
    whole = ir.VectorType(ir.IntType(bits), LANES)
    exponent = x if parts is None else builder.fmul(x, constant(LOG2_E))
    # NaN must not reach the conversion to whole numbers, but must stay in the rest.
    number = builder.select(builder.fcmp_ordered(">", exponent, constant(low)), exponent, constant(low))
    nearest = builder.select(builder.fcmp_ordered("<", number, constant(high)), number, constant(high))
    nearest = _call(builder, "rint", x.type, [nearest])
    if parts is None:
        rest = builder.select(builder.fcmp_ordered("<", x, constant(low)), constant(low), x)
        rest = builder.select(builder.fcmp_ordered(">", rest, constant(high)), constant(high), rest)
        rest = builder.fsub(rest, nearest)
    else:
        rest = builder.select(builder.fcmp_ordered("<", x, constant(low * LN_2)), constant(low * LN_2), x)
        rest = builder.select(builder.fcmp_ordered(">", rest, constant(high * LN_2)), constant(high * LN_2), rest)
        for part in parts:
            rest = builder.fsub(rest, builder.fmul(nearest, constant(part), flags=_FLAGS), flags=_FLAGS)
        rest = builder.fmul(rest, constant(LOG2_E))
    power = builder.fmul(rest, _horner(builder, _EXP2[bits], rest), flags=_FLAGS)
    power = builder.fadd(power, constant(1.0), flags=_FLAGS)
    raised = builder.add(builder.fptosi(nearest, whole), ir.Constant(whole, [bias] * LANES))
    scale = builder.bitcast(builder.shl(raised, ir.Constant(whole, [fraction] * LANES)), x.type)
    return builder.fmul(power, scale)


@intrinsic
def exp2(typing, vector):
    """2 to the power of each lane; NaN stays NaN, below the normal numbers is 0, from 127.5 on (1023.5) infinite."""

    def generate(context, builder, sig, arguments):
        return _power(builder, arguments[0], vector.scalar.bitwidth)

    return vector(vector), generate


@intrinsic
def exp(typing, vector):
    """e to the power of each lane, with the exponent reduced in two parts, so that no rounding of it counts."""

    def generate(context, builder, sig, arguments):
        bits = vector.scalar.bitwidth
        return _power(builder, arguments[0], bits, _LN_2_PARTS[bits])

    return vector(vector), generate


@intrinsic
def _atanh_series(typing, vector):
    """The polynomial of ``_atanh_rest``."""

    def generate(context, builder, sig, arguments):
        return _horner(builder, _ATANH[vector.scalar.bitwidth], arguments[0])

    return vector(vector), generate


@njit(inline="always")
def softplus(x):
    """log(1 + exp(x)); x itself above 20, as in torch."""
    size = where_above(x, 0.0, x, 0.0 - x)
    z = exp(0.0 - size)
    w = z / (z + 2.0)  # log(1 + z) = 2 atanh(w)
    s = w * w
    rest = (w + w) * (s * _atanh_series(s) + 1.0)
    return where_above(x, 20.0, x, where_above(x, 0.0, x, 0.0) + rest)


@njit(inline="always")
def softplus_slope(x):
    """Derivative of ``softplus``: 1 above 20, else the logistic function."""
    return where_above(x, 20.0, 1.0, 1.0 / (exp(0.0 - x) + 1.0))
