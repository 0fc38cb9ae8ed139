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
def _block(block, group, width):
    """First channel of a block, its lanes, and how many of them the block before it has too.

    The last block of a group overlaps instead of being short: lanes go through one vector load, and what two blocks
    compute twice is the same to the last bit. Only a group narrower than a vector has fewer lanes.
    """
    lanes = min(LANES, width)
    first = group * width + block * LANES
    channel = min(first, (group + 1) * width - lanes)
    return channel, lanes, first - channel


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
def _read_chunk(
    start, stop, order, item, channel, lanes, length, softplus_on, tensors, strides, spare, raws, steps, inputs
):
    """Step before the softplus, step and input of the rows of a chunk, one vector each.

    In a loop of its own, so that rows that are not in cache yet are fetched together.
    """
    u, context, delta, bias = tensors[0], tensors[1], tensors[2], tensors[7]
    u_at, context_at, delta_at = strides[0], strides[1], strides[2]
    offset = _load(bias, channel, lanes, spare)
    for t in range(start, stop):
        row = order[t] if order.size else t
        local = (t - start) * LANES
        raw = _load(delta, item * delta_at[0] + row * delta_at[1] + channel, lanes, spare) + offset
        if row < length:
            x = _load(u, item * u_at[0] + row * u_at[1] + channel, lanes, spare)
        else:
            x = _load(context, item * context_at[0] + (row - length) * context_at[1] + channel, lanes, spare)
        step = raw
        if softplus_on:
            step = softplus(raw)
        store(raws, local, raw)
        store(steps, local, step)
        store(inputs, local, x)


@_inline
def _read_gradient(start, stop, order, item, channel, lanes, length, grad_y, grad_y_at, spare, zeros, grads):
    """Gradient of the output of the rows of a chunk; zero where a row has none."""
    for t in range(start, stop):
        row = order[t] if order.size else t
        gy = load(zeros, 0)
        if row < length:
            gy = _load(grad_y, item * grad_y_at[0] + row * grad_y_at[1] + channel, lanes, spare)
        store(grads, (t - start) * LANES, gy)


@kernel
def forward(first, last, sizes, order, softplus_on, tensors, strides, parts, entering, leaving, spans, y, write_y):
    """Outputs of the tasks ``first`` to ``last``, one for each (batch entry, group, part, segment).

    A part is a run of blocks, which take turns chunk by chunk, so that every row is fetched from memory once.
    ``entering`` and ``leaving`` are the states at both ends of every segment, (segment, batch, channels, state), and
    ``spans`` the sums of the steps, (segment, batch, channels). Without ``write_y`` only those two are found.
    """
    batch, length, context_length, channels, groups, states, segments = sizes
    A, B, C, D = tensors[3], tensors[4], tensors[5], tensors[6]
    B_at, C_at = strides[3], strides[4]
    rows, width = length + context_length, channels // groups
    blocks = -(-width // LANES)
    wide, dtype = states * LANES, A.dtype
    most = -(-blocks // parts)
    spare = np.zeros(LANES, dtype)
    decays, hs, spans_here = np.empty(most * wide, dtype), np.empty(most * wide, dtype), np.empty(most * LANES, dtype)
    raws, steps, inputs = np.empty(CHUNK * LANES, dtype), np.empty(CHUNK * LANES, dtype), np.empty(CHUNK * LANES, dtype)
    outs = np.empty(CHUNK * LANES, dtype)
    for task in range(first, last):
        segment, rest = task % segments, task // segments
        part, rest = rest % parts, rest // parts
        group, item = rest % groups, rest // groups
        first_block, last_block = part * blocks // parts, (part + 1) * blocks // parts
        end = (segment * batch + item) * channels
        for block in range(first_block, last_block):
            channel, lanes, _ = _block(block, group, width)
            at = (block - first_block) * wide
            _read_per_channel(A, channel, lanes, states, LOG2_E, decays[at : at + wide])
            _read_per_channel(entering, end + channel, lanes, states, 1.0, hs[at : at + wide])
        spans_here[:] = 0
        start, stop = _bounds(segment, segments, rows)
        for chunk_start in range(start, stop, CHUNK):
            chunk_stop = min(stop, chunk_start + CHUNK)
            for block in range(first_block, last_block):
                channel, lanes, _ = _block(block, group, width)
                decay = decays[(block - first_block) * wide :]
                h = hs[(block - first_block) * wide :]
                skip = _load(D, channel, lanes, spare)
                span = load(spans_here, (block - first_block) * LANES)
                _read_chunk(
                    chunk_start, chunk_stop, order, item, channel, lanes, length, softplus_on, tensors, strides, spare,
                    raws, steps, inputs,
                )  # fmt: skip
                for t in range(chunk_start, chunk_stop):
                    row = order[t] if order.size else t
                    local = (t - chunk_start) * LANES
                    step, x = load(steps, local), load(inputs, local)
                    span = span + step
                    out = x * skip
                    x = x * step
                    b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
                    c_row = item * C_at[0] + row * C_at[1] + group * C_at[2]
                    for n in range(states):
                        state = exp2(step * load(decay, n * LANES)) * load(h, n * LANES) + x * B[b_row + n]
                        store(h, n * LANES, state)
                        out = out + state * C[c_row + n]
                    store(outs, local, out)
                store(spans_here, (block - first_block) * LANES, span)
                if write_y:
                    for t in range(chunk_start, chunk_stop):
                        row = order[t] if order.size else t
                        if row < length:
                            out = load(outs, (t - chunk_start) * LANES)
                            _store(y, (item * length + row) * channels + channel, lanes, spare, out)
        for block in range(first_block, last_block):
            channel, lanes, _ = _block(block, group, width)
            at = (block - first_block) * wide
            _write_per_channel(hs[at : at + wide], leaving, end + channel, lanes, states)
            span = load(spans_here, (block - first_block) * LANES)
            _store(spans, end + channel, lanes, spare, span)


@kernel
def carry_backward(first, last, sizes, order, softplus_on, tensors, strides, grad_y, grad_y_at, leaving):
    """Gradient that every segment hands to the one before it, when it gets none itself: the other half of ``forward``
    without outputs. Tasks and ``leaving`` as there."""
    batch, length, context_length, channels, groups, states, segments = sizes
    A, C, C_at = tensors[3], tensors[5], strides[4]
    rows, width = length + context_length, channels // groups
    blocks = -(-width // LANES)
    dtype = A.dtype
    spare, zeros = np.zeros(LANES, dtype), np.zeros(LANES, dtype)
    decay, carry = np.empty(states * LANES, dtype), np.empty(states * LANES, dtype)
    raws, steps, inputs = np.empty(CHUNK * LANES, dtype), np.empty(CHUNK * LANES, dtype), np.empty(CHUNK * LANES, dtype)
    grads = np.empty(CHUNK * LANES, dtype)
    for task in range(first, last):
        segment, rest = task % segments, task // segments
        block, rest = rest % blocks, rest // blocks
        group, item = rest % groups, rest // groups
        channel, lanes, _ = _block(block, group, width)
        _read_per_channel(A, channel, lanes, states, LOG2_E, decay)
        carry[:] = 0
        start, stop = _bounds(segment, segments, rows)
        for chunk_start in range(start + (stop - start - 1) // CHUNK * CHUNK, start - 1, -CHUNK):
            chunk_stop = min(stop, chunk_start + CHUNK)
            _read_chunk(
                chunk_start, chunk_stop, order, item, channel, lanes, length, softplus_on, tensors, strides, spare,
                raws, steps, inputs,
            )  # fmt: skip
            _read_gradient(
                chunk_start, chunk_stop, order, item, channel, lanes, length, grad_y, grad_y_at, spare, zeros, grads
            )
            for t in range(chunk_stop - 1, chunk_start - 1, -1):
                row = order[t] if order.size else t
                local = (t - chunk_start) * LANES
                step, gy = load(steps, local), load(grads, local)
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
    A, B, C, D = tensors[3], tensors[4], tensors[5], tensors[6]
    B_at, C_at = strides[3], strides[4]
    grad_u, grad_context, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, grad_entering = results
    rows, width = length + context_length, channels // groups
    blocks = -(-width // LANES)
    wide, dtype = states * LANES, A.dtype
    spare, zeros, piece = np.zeros(LANES, dtype), np.zeros(LANES, dtype), np.empty(LANES, dtype)
    decay, h = np.empty(wide, dtype), np.empty(wide, dtype)
    carry, piece_A = np.empty(wide, dtype), np.empty(wide, dtype)
    raws, steps, inputs = np.empty(CHUNK * LANES, dtype), np.empty(CHUNK * LANES, dtype), np.empty(CHUNK * LANES, dtype)
    grads, trace = np.empty(CHUNK * LANES, dtype), np.empty(CHUNK * 2 * wide, dtype)
    checkpoints = np.empty((-(-rows // CHUNK) // segments + 1) * wide, dtype)
    sums_A, sums_D, sums_bias = np.empty(wide), np.empty(LANES), np.empty(LANES)
    for task in range(first, last):
        segment, rest = task % segments, task // segments
        part, rest = rest % parts, rest // parts
        group, item = rest % groups, rest // groups
        start, stop = _bounds(segment, segments, rows)
        end = (segment * batch + item) * channels
        for block in range(part * blocks // parts, (part + 1) * blocks // parts):
            channel, lanes, covered = _block(block, group, width)
            piece[:covered] = 0
            piece[covered:] = 1
            fresh = load(piece, 0)
            _read_per_channel(A, channel, lanes, states, LOG2_E, decay)
            _read_per_channel(entering, end + channel, lanes, states, 1.0, h)
            skip = _load(D, channel, lanes, spare)

            # The states that enter each chunk.
            for chunk_start in range(start, stop, CHUNK):
                chunk_stop = min(stop, chunk_start + CHUNK)
                at = (chunk_start - start) // CHUNK * wide
                checkpoints[at : at + wide] = h
                _read_chunk(
                    chunk_start, chunk_stop, order, item, channel, lanes, length, softplus_on, tensors, strides, spare,
                    raws, steps, inputs,
                )  # fmt: skip
                for t in range(chunk_start, chunk_stop):
                    row = order[t] if order.size else t
                    local = (t - chunk_start) * LANES
                    step = load(steps, local)
                    x = load(inputs, local) * step
                    b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
                    for n in range(states):
                        state = exp2(step * load(decay, n * LANES)) * load(h, n * LANES) + x * B[b_row + n]
                        store(h, n * LANES, state)

            _read_per_channel(grad_leaving, end + channel, lanes, states, 1.0, carry)
            sums_A[:] = 0
            sums_D[:] = 0
            sums_bias[:] = 0
            for chunk_start in range(start + (stop - start - 1) // CHUNK * CHUNK, start - 1, -CHUNK):
                chunk_stop = min(stop, chunk_start + CHUNK)
                at = (chunk_start - start) // CHUNK * wide
                h[:] = checkpoints[at : at + wide]
                _read_chunk(
                    chunk_start, chunk_stop, order, item, channel, lanes, length, softplus_on, tensors, strides, spare,
                    raws, steps, inputs,
                )  # fmt: skip
                _read_gradient(
                    chunk_start, chunk_stop, order, item, channel, lanes, length, grad_y, grad_y_at, spare, zeros, grads
                )

                # Decay of each step, and what it leaves of the state before, once more.
                for t in range(chunk_start, chunk_stop):
                    row = order[t] if order.size else t
                    local = (t - chunk_start) * LANES
                    step = load(steps, local)
                    x = load(inputs, local) * step
                    b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
                    at = (t - chunk_start) * 2 * wide
                    for n in range(states):
                        e = exp2(step * load(decay, n * LANES))
                        faded = e * load(h, n * LANES)
                        store(trace, at + n * LANES, faded)
                        store(trace, at + wide + n * LANES, e)
                        store(h, n * LANES, faded + x * B[b_row + n])

                piece_A[:] = 0
                piece_D, piece_bias = load(zeros, 0), load(zeros, 0)
                for t in range(chunk_stop - 1, chunk_start - 1, -1):
                    row = order[t] if order.size else t
                    local = (t - chunk_start) * LANES
                    step, raw_input, gy = load(steps, local), load(inputs, local), load(grads, local)
                    x = raw_input * step
                    fresh_gy, fresh_x = gy * fresh, x * fresh
                    b_row = item * B_at[0] + row * B_at[1] + group * B_at[2]
                    c_row = item * C_at[0] + row * C_at[1] + group * C_at[2]
                    g_row = (((part * batch + item) * rows + row) * groups + group) * states
                    grad_x, grad_step = load(zeros, 0), load(zeros, 0)
                    at = (t - chunk_start) * 2 * wide
                    for n in range(states):
                        faded = load(trace, at + n * LANES)
                        g = gy * C[c_row + n] + load(carry, n * LANES)
                        grad_C[g_row + n] += total(fresh_gy * (faded + x * B[b_row + n]))
                        grad_B[g_row + n] += total(g * fresh_x)
                        grad_x = grad_x + g * B[b_row + n]
                        store(carry, n * LANES, g * load(trace, at + wide + n * LANES))
                        exponent = g * faded  # gradient of step * A
                        grad_step = grad_step + exponent * load(decay, n * LANES)
                        store(piece_A, n * LANES, load(piece_A, n * LANES) + exponent * step)
                    grad_step = grad_step * LN_2 + grad_x * raw_input
                    if softplus_on:
                        grad_step = grad_step * softplus_slope(load(raws, local))
                    piece_D = piece_D + gy * raw_input
                    piece_bias = piece_bias + grad_step
                    store(steps, local, grad_step)  # which are not read again
                    store(inputs, local, grad_x * step + gy * skip)
                for t in range(chunk_start, chunk_stop):
                    row = order[t] if order.size else t
                    local = (t - chunk_start) * LANES
                    _store(grad_delta, (item * rows + row) * channels + channel, lanes, spare, load(steps, local))
                    if row < length:
                        at = (item * length + row) * channels + channel
                        _store(grad_u, at, lanes, spare, load(inputs, local))
                    else:
                        at = (item * context_length + row - length) * channels + channel
                        _store(grad_context, at, lanes, spare, load(inputs, local))

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
