"""The scan as compiled loops for CPUs: blocked over (batch, length, channels), forward and backward.

A *block* is ``LANES`` neighbouring channels of one group; their states live in a scratch of (state, lane). A *segment*
is a part of the sequence; there is more than one only where blocks alone cannot occupy all threads. A *chunk* of
``CHUNK`` steps is read into scratch, advanced step by step, and written out.

Tensors come as one-dimensional arrays over their memory with strides in elements, the last axis contiguous. ``order``
names the row that comes t-th; rows from ``length`` on are those of ``context``. All kernels release the GIL, and tasks
write to places of their own, so the caller may spread tasks over threads as it likes and gets the same numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .numba_vectors import LANES, LN_2, LOG2_E, exp2, load, softplus, softplus_slope, store, total

CHUNK = 32
_OPTIONS = {"nogil": True, "error_model": "numpy"}
_inline = njit(inline="always", **_OPTIONS)
kernel = njit(**_OPTIONS)


@_inline
def _load(array, start, lanes, spare):
    """The first ``lanes`` lanes from ``array[start]`` on, zero in the others; ``spare`` holds zeros beyond them."""
    if lanes < LANES:
        for lane in range(lanes):
            spare[lane] = array[start + lane]
        return load(spare, 0)
    return load(array, start)


@_inline
def _store(array, start, lanes, spare, vector):
    """Write the first ``lanes`` lanes to ``array[start]`` and on; ``spare`` keeps its zeros beyond them."""
    if lanes < LANES:
        store(spare, 0, vector)
        for lane in range(lanes):
            array[start + lane] = spare[lane]
        spare[lanes:] = 0
    else:
        store(array, start, vector)


@_inline
def _bounds(segment, segments, rows):
    """First and last step of a segment, whole chunks."""
    chunks = -(-rows // CHUNK)
    return segment * chunks // segments * CHUNK, min(rows, (segment + 1) * chunks // segments * CHUNK)


@_inline
def _read_per_channel(array, first_channel, lanes, states, factor, scratch):
    """(channel, state) of one block, times ``factor``, into (state, lane); zero beyond the block's lanes."""
    scratch[:] = 0
    for lane in range(lanes):
        for n in range(states):
            scratch[n * LANES + lane] = array[(first_channel + lane) * states + n] * factor


@_inline
def _write_per_channel(scratch, array, first_channel, lanes, states):
    for lane in range(lanes):
        for n in range(states):
            array[(first_channel + lane) * states + n] = scratch[n * LANES + lane]


@_inline
def _read_step(
    row, item, channel, lanes, length, softplus_on, u, u_at, context, context_at, delta, delta_at, bias, spare
):
    """Step before the softplus, step and input of one row."""
    raw = _load(delta, item * delta_at[0] + row * delta_at[1] + channel, lanes, spare) + _load(
        bias, channel, lanes, spare
    )
    if row < length:
        x = _load(u, item * u_at[0] + row * u_at[1] + channel, lanes, spare)
    else:
        x = _load(context, item * context_at[0] + (row - length) * context_at[1] + channel, lanes, spare)
    step = raw
    if softplus_on:
        step = softplus(raw)
    return raw, step, x


@kernel
def forward(first, last, sizes, order, softplus_on, tensors, strides, entering, leaving, steps, y, write_y):
    """Outputs of the tasks ``first`` to ``last``, one for each (batch entry, group, block, segment).

    ``entering`` and ``leaving`` are the states at both ends of every segment, (segment, batch, channels, state), and
    ``steps`` the sums of the steps, (segment, batch, channels). Without ``write_y`` only those two are found.
    """
    batch, length, context_length, channels, groups, states, segments = sizes
    u, context, delta, A, B, C, D, bias = tensors
    u_at, context_at, delta_at, B_at, C_at = strides
    rows, width = length + context_length, channels // groups
    blocks = -(-width // LANES)
    spare, zeros = np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype)
    decay, h = np.empty(states * LANES, u.dtype), np.empty(states * LANES, u.dtype)
    for task in range(first, last):
        segment, rest = task % segments, task // segments
        block, rest = rest % blocks, rest // blocks
        group, item = rest % groups, rest // groups
        channel = group * width + block * LANES
        lanes = min(LANES, (group + 1) * width - channel)
        end = (segment * batch + item) * channels
        _read_per_channel(A, channel, lanes, states, LOG2_E, decay)
        _read_per_channel(entering, end + channel, lanes, states, 1.0, h)
        skip = _load(D, channel, lanes, spare)
        elapsed = load(zeros, 0)
        start, stop = _bounds(segment, segments, rows)
        for t in range(start, stop):
            row = order[t] if order.size else t
            _, step, x = _read_step(
                row,
                item,
                channel,
                lanes,
                length,
                softplus_on,
                u,
                u_at,
                context,
                context_at,
                delta,
                delta_at,
                bias,
                spare,
            )
            elapsed = elapsed + step
            out = x * skip
            x = x * step
            b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
            if write_y and row < length:
                c_row = item * C_at[0] + row * C_at[1] + group * C_at[2]
                for n in range(states):
                    state = exp2(step * load(decay, n * LANES)) * load(h, n * LANES) + x * B[b_row + n]
                    store(h, n * LANES, state)
                    out = out + state * C[c_row + n]
                _store(y, (item * length + row) * channels + channel, lanes, spare, out)
            else:
                for n in range(states):
                    state = exp2(step * load(decay, n * LANES)) * load(h, n * LANES) + x * B[b_row + n]
                    store(h, n * LANES, state)
        _write_per_channel(h, leaving, end + channel, lanes, states)
        _store(steps, end + channel, lanes, spare, elapsed)


@kernel
def carry_backward(first, last, sizes, order, softplus_on, tensors, strides, grad_y, grad_y_at, leaving):
    """Gradient that every segment hands to the one before it, when it gets none itself: the other half of ``forward``
    without outputs. Tasks and ``leaving`` as there."""
    batch, length, context_length, channels, groups, states, segments = sizes
    u, context, delta, A, B, C, D, bias = tensors
    u_at, context_at, delta_at, B_at, C_at = strides
    rows, width = length + context_length, channels // groups
    blocks = -(-width // LANES)
    spare, zeros = np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype)
    decay, carry = np.empty(states * LANES, u.dtype), np.empty(states * LANES, u.dtype)
    for task in range(first, last):
        segment, rest = task % segments, task // segments
        block, rest = rest % blocks, rest // blocks
        group, item = rest % groups, rest // groups
        channel = group * width + block * LANES
        lanes = min(LANES, (group + 1) * width - channel)
        _read_per_channel(A, channel, lanes, states, LOG2_E, decay)
        carry[:] = 0
        start, stop = _bounds(segment, segments, rows)
        for t in range(stop - 1, start - 1, -1):
            row = order[t] if order.size else t
            _, step, _ = _read_step(
                row,
                item,
                channel,
                lanes,
                length,
                softplus_on,
                u,
                u_at,
                context,
                context_at,
                delta,
                delta_at,
                bias,
                spare,
            )
            gy = load(zeros, 0)
            if row < length:
                gy = _load(grad_y, item * grad_y_at[0] + row * grad_y_at[1] + channel, lanes, spare)
            c_row = item * C_at[0] + row * C_at[1] + group * C_at[2]
            for n in range(states):
                g = gy * C[c_row + n] + load(carry, n * LANES)
                store(carry, n * LANES, g * exp2(step * load(decay, n * LANES)))
        _write_per_channel(carry, leaving, (segment * batch + item) * channels + channel, lanes, states)


@kernel
def backward(
    first, last, sizes, order, softplus_on, tensors, strides, entering, grad_y, grad_y_at, grad_leaving, parts, results
):
    """Gradients of the tasks ``first`` to ``last``, one for each (batch entry, group, part, segment).

    A part is a run of blocks; its blocks add up their gradients of B and C one after the other. ``entering`` and
    ``grad_leaving`` are the states and the gradients of the states at the ends of the segments, (segment, batch,
    channels, state). Of ``results``, the gradients of u, context and delta are (batch, rows, channels); of B and C
    (part, batch, rows, groups, state), zero at first; of A (segment, batch, channels, state) and of D and the bias
    (segment, batch, channels) in float64; of the entering states as those are.
    """
    batch, length, context_length, channels, groups, states, segments = sizes
    u, context, delta, A, B, C, D, bias = tensors
    u_at, context_at, delta_at, B_at, C_at = strides
    grad_u, grad_context, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, grad_entering = results
    rows, width = length + context_length, channels // groups
    blocks = -(-width // LANES)
    wide = states * LANES
    spare, zeros = np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype)
    decay, h, carry, sums_A = np.empty(wide, u.dtype), np.empty(wide, u.dtype), np.empty(wide, u.dtype), np.empty(wide)
    piece_A, trace = np.empty(wide, u.dtype), np.empty(CHUNK * 2 * wide, u.dtype)
    raws, steps, inputs = (
        np.empty(CHUNK * LANES, u.dtype),
        np.empty(CHUNK * LANES, u.dtype),
        np.empty(CHUNK * LANES, u.dtype),
    )
    checkpoints = np.empty((-(-rows // CHUNK) // segments + 1) * wide, u.dtype)
    piece, sums_D, sums_bias = np.empty(LANES, u.dtype), np.empty(LANES), np.empty(LANES)
    for task in range(first, last):
        segment, rest = task % segments, task // segments
        part, rest = rest % parts, rest // parts
        group, item = rest % groups, rest // groups
        start, stop = _bounds(segment, segments, rows)
        end = (segment * batch + item) * channels
        for block in range(part * blocks // parts, (part + 1) * blocks // parts):
            channel = group * width + block * LANES
            lanes = min(LANES, (group + 1) * width - channel)
            _read_per_channel(A, channel, lanes, states, LOG2_E, decay)
            _read_per_channel(entering, end + channel, lanes, states, 1.0, h)
            skip = _load(D, channel, lanes, spare)
            nothing = load(zeros, 0)

            # The states that enter each chunk.
            for t in range(start, stop):
                if (t - start) % CHUNK == 0:
                    at = (t - start) // CHUNK * wide
                    checkpoints[at : at + wide] = h
                row = order[t] if order.size else t
                _, step, x = _read_step(
                    row, item, channel, lanes, length, softplus_on,
                    u, u_at, context, context_at, delta, delta_at, bias, spare,
                )  # fmt: skip
                x = x * step
                b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
                for n in range(states):
                    store(
                        h,
                        n * LANES,
                        exp2(step * load(decay, n * LANES)) * load(h, n * LANES) + x * B[b_row + n],
                    )

            _read_per_channel(grad_leaving, end + channel, lanes, states, 1.0, carry)
            sums_A[:] = 0
            sums_D[:] = 0
            sums_bias[:] = 0
            for chunk_start in range(start + (stop - start - 1) // CHUNK * CHUNK, start - 1, -CHUNK):
                chunk_stop = min(stop, chunk_start + CHUNK)
                at = (chunk_start - start) // CHUNK * wide
                h[:] = checkpoints[at : at + wide]

                # The state ahead of each step, and the decay of each step, once more.
                for t in range(chunk_start, chunk_stop):
                    row = order[t] if order.size else t
                    raw, step, x = _read_step(
                        row, item, channel, lanes, length, softplus_on,
                        u, u_at, context, context_at, delta, delta_at, bias, spare,
                    )  # fmt: skip
                    local = t - chunk_start
                    store(raws, local * LANES, raw)
                    store(steps, local * LANES, step)
                    store(inputs, local * LANES, x)
                    x = x * step
                    b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
                    for n in range(states):
                        e, state = exp2(step * load(decay, n * LANES)), load(h, n * LANES)
                        faded = e * state
                        store(trace, local * 2 * wide + n * LANES, faded)
                        store(trace, local * 2 * wide + wide + n * LANES, e)
                        store(h, n * LANES, faded + x * B[b_row + n])

                piece_A[:] = 0
                piece_D, piece_bias = nothing, nothing
                for t in range(chunk_stop - 1, chunk_start - 1, -1):
                    row = order[t] if order.size else t
                    local = t - chunk_start
                    step, raw_input = load(steps, local * LANES), load(inputs, local * LANES)
                    x = raw_input * step
                    gy = nothing
                    if row < length:
                        gy = _load(grad_y, item * grad_y_at[0] + row * grad_y_at[1] + channel, lanes, spare)
                    b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
                    c_row = item * C_at[0] + row * C_at[1] + group * C_at[2]
                    g_row = (((part * batch + item) * rows + row) * groups + group) * states
                    grad_x, grad_step = nothing, nothing
                    for n in range(states):
                        faded = load(trace, local * 2 * wide + n * LANES)
                        g = gy * C[c_row + n] + load(carry, n * LANES)
                        grad_C[g_row + n] += total(gy * (faded + x * B[b_row + n]))
                        grad_B[g_row + n] += total(g * x)
                        grad_x = grad_x + g * B[b_row + n]
                        store(carry, n * LANES, g * load(trace, local * 2 * wide + wide + n * LANES))
                        exponent = g * faded  # gradient of step * A
                        grad_step = grad_step + exponent * load(decay, n * LANES)
                        store(piece_A, n * LANES, load(piece_A, n * LANES) + exponent * step)
                    grad_step = grad_step * LN_2 + grad_x * raw_input
                    if softplus_on:
                        grad_step = grad_step * softplus_slope(load(raws, local * LANES))
                    grad_x = grad_x * step + gy * skip
                    _store(grad_delta, (item * rows + row) * channels + channel, lanes, spare, grad_step)
                    if row < length:
                        _store(grad_u, (item * length + row) * channels + channel, lanes, spare, grad_x)
                    else:
                        row = item * context_length + row - length
                        _store(grad_context, row * channels + channel, lanes, spare, grad_x)
                    piece_D = piece_D + gy * raw_input
                    piece_bias = piece_bias + grad_step
                # Sums along the length in double precision: there may be a million steps.
                for index in range(wide):
                    sums_A[index] += piece_A[index]
                store(piece, 0, piece_D)
                for lane in range(LANES):
                    sums_D[lane] += piece[lane]
                store(piece, 0, piece_bias)
                for lane in range(LANES):
                    sums_bias[lane] += piece[lane]

            _write_per_channel(sums_A, grad_A, end + channel, lanes, states)
            _write_per_channel(carry, grad_entering, end + channel, lanes, states)
            for lane in range(lanes):
                grad_D[end + channel + lane] = sums_D[lane]
                grad_bias[end + channel + lane] = sums_bias[lane]
