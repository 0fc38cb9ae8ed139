"""The scan for GPUs: kernels only, the arithmetic of ``ops/README.md``.

A program is one warp and owns ``BLOCK`` channels of one batch entry and group, along one *chunk* of the sequence. It
walks over the chunk in *tiles* of ``STEPS`` steps, whose values stay in registers as tuples with an entry per step, and
within a tile over the states, ``STATES`` at a time. So each thread goes through the steps of its own channels in order,
nothing is summed across threads but the gradients of B and C, and the exponentials of a tile do not wait for one
another.

The weights B and C come packed, (batch, group, tile, 2, WIDTH, STEPS), in the order of the sequence, with zeros beyond
the last state and the last step, and are loaded 64 bits at a time.

A chunk does not know what enters it. So all chunks first run from zero (``sum_chunks``), then what leaves one enters
the next (``carry``), then they run for good (``finish_chunks``). From one tile to the next a state lies in global
memory.

Tensors have two axes, (state, channel); one of them has size 1 where it does not matter. Loads give the type ``ACC``,
float32 or float64, and stores round. Offsets of rows within a batch entry are 64-bit if WIDE, all others of tensors
with channels always. Numbers are compared in full shape, hence ``owned * 0 + ...``: Triton's interpreter cannot spread
a single truth value.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
SOFTPLUS_THRESHOLD = tl.constexpr(20.0)
# Coefficients of polynomials in z for log(1 + z) / z on [0, 1], the constant first: Chebyshev's interpolation. They are
# part of the key under which a kernel is kept, so they must not be computed anew on every machine.
# fmt: off
LOG1P_8 = tl.constexpr((
    0.999999966, -0.49999445, 0.333181217, -0.24835399, 0.190768807, -0.136022476, 0.0775160866, -0.0290740646,
    0.00512610212,
))
LOG1P_18 = tl.constexpr((
    1.0000000000000018, -0.5000000000007087, 0.33333333337876375, -0.250000001069909, 0.20000000906278886,
    -0.1666666117873879, 0.14285507472415976, -0.12497631902397187, 0.11094629079678654, -0.09920009984795655,
    0.08803493768822304, -0.07541499702921628, 0.05977616914989134, -0.04160648692203196, 0.024017235166148135,
    -0.010796615951939635, 0.003491451865748356, -0.0007155568976151314, 6.936725817228619e-05,
))
# fmt: on
# Chunks whose values are loaded before the first is used.
CARRY_UNROLL = tl.constexpr(16)


# Nothing is compiled anew for another length, batch, number of channels, stride or address: members of a tuple would be
# specialised whatever is said here, so these are arguments of their own. A tensor (batch, row, channel) comes with the
# strides of its rows and of its batch; that of the channels is one.
UNSPECIALIZED = (
    *("length", "rows", "tiles", "chunks", "padded", "batch", "channels", "groups", "state_size"),
    *(name + part for name in ("u", "context", "delta", "grad_y") for part in ("", "_row", "_batch")),
)


@triton.jit
def _finite(x, ACC: tl.constexpr):
    """At most the largest number: where nothing fades (A above zero), a state of zero must stay zero."""
    LARGEST: tl.constexpr = 1.7e308 if ACC == tl.float64 else 3.4e38  # noqa: SIM300 - a dtype cannot compare itself
    return tl.minimum(x, LARGEST)


@triton.jit
def _step(raw, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """The step: softplus(x) = max(x, 0) + log(1 + z) with z = exp(-|x|), and log(1 + z) / z as a polynomial."""
    if not SOFTPLUS:
        return raw
    DEGREE: tl.constexpr = 18 if ACC == tl.float64 else 8  # noqa: SIM300 - a dtype cannot compare itself
    LOG1P: tl.constexpr = LOG1P_18 if DEGREE == 18 else LOG1P_8
    small = tl.exp2(tl.abs(raw) * -LOG2_E)
    series = small * 0.0 + LOG1P[DEGREE]
    for i in tl.static_range(DEGREE - 1, -1, -1):
        series = series * small + LOG1P[i]
    step = tl.maximum(raw, 0.0) + small * series
    if DEGREE == 18:  # in single precision nothing is left of the logarithm there
        step = tl.where(raw > SOFTPLUS_THRESHOLD, raw, step)
    return step


@triton.jit
def _slope(raw, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """Derivative of the step: 1 above the threshold, else the sigmoid."""
    if not SOFTPLUS:
        return raw * 0.0 + 1.0
    small = tl.exp2(tl.abs(raw) * -LOG2_E)
    sigmoid = tl.where(raw >= 0.0, 1.0, small) / (1.0 + small)
    if ACC == tl.float64:  # noqa: SIM300 - in single precision it is 1 there
        sigmoid = tl.where(raw > SOFTPLUS_THRESHOLD, 1.0, sigmoid)
    return sigmoid


@triton.jit
def _program(batch, channels, groups, BLOCK: tl.constexpr):
    """What this program owns: chunk, batch entry, group, block of the group, its channels, and which of these exist."""
    per_group = channels // groups
    blocks = tl.cdiv(per_group, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    group = (program // blocks) % groups
    entry = (program // (blocks * groups)) % batch
    chunk = program // (blocks * groups * batch)
    within = (block * BLOCK).to(tl.int64) + tl.arange(0, BLOCK).to(tl.int64)[None, :]
    return chunk, entry.to(tl.int64), group.to(tl.int64), block, group * per_group + within, within < per_group


@triton.jit
def _offset(row, stride, WIDE: tl.constexpr):
    """Offset of a row within a batch entry."""
    return row.to(tl.int64) * stride if WIDE else row * stride


@triton.jit
def _tile(
    start, length, rows, u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
    bias, order, entry, c, owned,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Row, step and input for every step of a tile. Beyond the end the step is zero, so that a state stays, and the row
    is one of the context, which has no output, or the last one.
    """
    inputs = u + entry * u_batch
    raws = delta + entry * delta_batch + c
    places = ()
    dts = ()
    values = ()
    for i in tl.static_range(STEPS):
        row = tl.minimum(start + i, rows - 1)
        if order is not None:
            row = tl.load(order + start + i)
        there = owned & (owned * 0 + start + i < rows)
        raw = tl.load(raws + _offset(row, delta_row, WIDE), mask=there, other=float("-inf")).to(ACC)
        if bias is not None:
            raw += tl.load(bias + c, mask=owned, other=0.0)
        if not SOFTPLUS:
            raw = tl.where(there, raw, 0.0)
        line = inputs + _offset(row, u_row, WIDE)
        if context is not None:
            outer = context + entry * context_batch + _offset(row - length, context_row, WIDE)
            line = tl.where(row < length, line, outer)
        value = tl.load(line + c, mask=owned, other=0.0).to(ACC)
        places = places + (row,)
        dts = dts + (_step(raw, SOFTPLUS, ACC),)
        values = values + (value,)
    return places, dts, values


@triton.jit
def _of_states(place, some, STATES: tl.constexpr):
    """What lies at ``place`` for the channels of a program, anything for those it has not: there is memory behind."""
    if STATES == 1:
        return tl.load(place)
    return tl.load(place, mask=some, other=0.0)


@triton.jit
def _weights(place, STEPS: tl.constexpr, ACC: tl.constexpr):
    """What lies at ``place``, (state, 1), for every step of a tile; two numbers of single precision are one load."""
    words = place.to(tl.pointer_type(tl.int64))
    found = ()
    if ACC == tl.float64:  # noqa: SIM300 - a dtype cannot compare itself
        for i in tl.static_range(STEPS):
            found = found + (tl.load(place + i),)
    else:
        for i in tl.static_range(STEPS // 2):
            both = tl.load(words + i)
            found = found + (both.to(tl.int32).to(ACC, bitcast=True), (both >> 32).to(tl.int32).to(ACC, bitcast=True))
    return found


@triton.jit
def _has_output(owned, step, row, length, rows, context):
    """Whether there is an output for this step; with a context, steps beyond the end have a row of it."""
    if context is None:
        return owned & (owned * 0 + step < rows)
    return owned & (owned * 0 + row < length)


@triton.jit
def _upstream(
    start, places, length, rows, context, grad_y, grad_y_row, grad_y_batch, entry, c, owned,
    STEPS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of the output for every step of a tile; zero for rows that have none, and beyond the end."""
    base = grad_y + entry * grad_y_batch + c
    upstream = ()
    for i in tl.static_range(STEPS):
        kept = _has_output(owned, start + i, places[i], length, rows, context)
        place = base + _offset(places[i], grad_y_row, WIDE)
        upstream = upstream + (tl.load(place, mask=kept, other=0.0).to(ACC),)
    return upstream


@triton.jit
def _merge(parts, lane, BIT: tl.constexpr, COUNT: tl.constexpr):
    """Half as many values: where the numbers of two threads differ in one bit only, the first of them adds up what both
    have of every value in the first half, the other what both have of those in the second half.
    """
    first = (lane & BIT) == 0
    merged = ()
    for i in tl.static_range(COUNT // 2):
        kept = tl.where(first, parts[i], parts[COUNT // 2 + i])
        given = tl.where(first, parts[COUNT // 2 + i], parts[i])
        merged = merged + (kept + tl.gather(given, lane ^ BIT, 1),)
    return merged


@triton.jit
def _over_channels(parts, n):
    """Sums over 64 channels of 16 values for every state: the m-th of 32 threads gets the sum of the m-th value, and so
    does the one 16 behind it. A thread has channels that are 32 apart.

    One exchange between threads for a value, where ``tl.sum`` takes five.
    """
    lane = tl.arange(0, 32)[None, :] + n * 0
    mine = ()
    for i in tl.static_range(16):
        mine = mine + (tl.sum(tl.reshape(parts[i], [parts[i].shape[0], 2, 32]), axis=1),)
    eights = _merge(mine, lane, 8, 16)
    fours = _merge(eights, lane, 4, 8)
    pairs = _merge(fours, lane, 2, 4)
    half = _merge(pairs, lane, 1, 2)[0]
    return half + tl.gather(half, lane ^ 16, 1), lane


@triton.jit(do_not_specialize=UNSPECIALIZED)
def sum_chunks(
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch, bias, decays, weights, order,
    ends, spans,
    batch, channels, groups, state_size, length, rows, tiles, padded,
    STEPS: tl.constexpr, STATES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Run every chunk from a zero state.

    Fills ``ends`` (chunk, batch, state, channel) with the last states, ``spans`` (chunk, batch, channel) with the sums
    of the steps.
    """
    chunk, entry, group, _, c, owned = _program(batch, channels, groups, BLOCK)
    lines = weights + (entry * groups + group) * padded * (2 * WIDTH)
    ends += (chunk.to(tl.int64) * batch + entry) * state_size * channels
    spans += (chunk.to(tl.int64) * batch + entry) * channels
    n = tl.arange(0, STATES)[:, None]
    span = tl.zeros([1, BLOCK], ACC)
    for tile in range(tiles):
        number = chunk * tiles + tile
        start = number * STEPS
        places, dts, values = _tile(
            start, length, rows, u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
            bias, order, entry, c, owned,
            STEPS, SOFTPLUS, WIDE, ACC,
        )  # fmt: skip
        for i in tl.static_range(STEPS):
            span += dts[i]
        weight = lines + start.to(tl.int64) * (2 * WIDTH) + n * STEPS
        fading = decays + n * channels + c
        place = ends + n * channels + c
        for first in range(0, state_size, STATES):
            some = owned & (first + n < state_size)
            inflow = _weights(weight, STEPS, ACC)
            decay = _of_states(fading, some, STATES)
            h = tl.load(place, mask=some & (owned * 0 + number > chunk * tiles), other=0.0)
            for i in tl.static_range(STEPS):
                h = tl.exp2(dts[i] * decay) * h + dts[i] * values[i] * inflow[i]
            tl.store(place, h, mask=some)
            weight += STATES * STEPS
            fading += STATES * channels
            place += STATES * channels
        tl.debug_barrier()
    tl.store(spans + c, span, mask=owned)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def carry(
    states, spans, decays, first,
    batch, channels, state_size, chunks,
    BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Replace what every chunk yields by what enters it, when ``first`` (batch, state, channel) enters the first one.

    ``states`` is (chunk, batch, state, channel). With REVERSE the last chunk is the first, and these are gradients.
    """
    per_chunk = tl.full([], 1, tl.int64) * batch * state_size * channels
    each = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    owned = each < per_chunk
    c = each % channels
    entry = each // (state_size * channels)
    decay = tl.load(decays + each % (state_size * channels), mask=owned, other=0.0)
    carried = tl.load(first + each, mask=owned, other=0.0)
    for begin in range(0, chunks, CARRY_UNROLL):
        yields = ()
        fades = ()
        for i in tl.static_range(CARRY_UNROLL):
            chunk = chunks - 1 - begin - i if REVERSE else begin + i
            # What the last one yields enters none, and may not even be there.
            present = owned & (each * 0 + begin + i + 1 < chunks)
            yields = yields + (tl.load(states + chunk * per_chunk + each, mask=present, other=0.0),)
            span = tl.load(spans + (chunk * batch + entry) * channels + c, mask=present, other=0.0)
            fades = fades + (_finite(tl.exp2(span * decay), carried.dtype),)
        for i in tl.static_range(CARRY_UNROLL):
            chunk = chunks - 1 - begin - i if REVERSE else begin + i
            tl.store(states + chunk * per_chunk + each, carried, mask=owned & (each * 0 + begin + i < chunks))
            carried = fades[i] * carried + yields[i]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def finish_chunks(
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
    bias, decays, weights, D, order,
    states, y,
    batch, channels, groups, state_size, length, rows, tiles, padded,
    STEPS: tl.constexpr, STATES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Run every chunk from the state that enters it, for ``y`` (batch, length, channel).

    ``states`` (chunk, batch, state, channel) holds what enters, and afterwards what leaves.
    """
    chunk, entry, group, _, c, owned = _program(batch, channels, groups, BLOCK)
    lines = weights + (entry * groups + group) * padded * (2 * WIDTH)
    states += (chunk.to(tl.int64) * batch + entry) * state_size * channels
    y += entry * length * channels + c
    n = tl.arange(0, STATES)[:, None]
    direct = tl.zeros([1, BLOCK], ACC)
    if D is not None:
        direct = tl.load(D + c, mask=owned, other=0.0)
    for tile in range(tiles):
        start = (chunk * tiles + tile) * STEPS
        places, dts, values = _tile(
            start, length, rows, u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
            bias, order, entry, c, owned,
            STEPS, SOFTPLUS, WIDE, ACC,
        )  # fmt: skip
        outputs = ()
        for i in tl.static_range(STEPS):
            outputs = outputs + (values[i] * direct,)
        weight = lines + start.to(tl.int64) * (2 * WIDTH) + n * STEPS
        fading = decays + n * channels + c
        place = states + n * channels + c
        for first in range(0, state_size, STATES):
            some = owned & (first + n < state_size)
            inflow = _weights(weight, STEPS, ACC)
            decay = _of_states(fading, some, STATES)
            h = _of_states(place, some, STATES)
            outflow = _weights(weight + WIDTH * STEPS, STEPS, ACC)
            sums = ()
            for i in tl.static_range(STEPS):
                h = tl.exp2(dts[i] * decay) * h + dts[i] * values[i] * inflow[i]
                sums = sums + (outputs[i] + tl.sum(outflow[i] * h, axis=0, keep_dims=True),)
            outputs = sums
            tl.store(place, h, mask=some)
            weight += STATES * STEPS
            fading += STATES * channels
            place += STATES * channels
        for i in tl.static_range(STEPS):
            kept = _has_output(owned, start + i, places[i], length, rows, context)
            place = y + _offset(places[i], channels, WIDE)
            tl.store(place, outputs[i].to(y.dtype.element_ty), mask=kept)
        tl.debug_barrier()


@triton.jit(do_not_specialize=UNSPECIALIZED)
def sum_chunks_backward(
    grad_y, grad_y_row, grad_y_batch,
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
    bias, decays, weights, order,
    starts, prefixes, ends, handed, spans,
    batch, channels, groups, state_size, length, rows, tiles, padded,
    STEPS: tl.constexpr, STATES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Run every chunk from a zero state and with no gradient from later chunks.

    Fills ``ends`` (chunk, batch, state, channel) with the last states, ``handed`` (the same) with the gradient of the
    state that enters, ``spans`` (chunk, batch, channel) with the sum of the steps. Also, for every tile but the first
    of a chunk, ``starts`` (tile, batch, state, channel) with the state before it, and for every tile ``prefixes``
    (tile, batch, channel) with the sum of the steps before it.
    """
    chunk, entry, group, _, c, owned = _program(batch, channels, groups, BLOCK)
    per_tile = tl.full([], 1, tl.int64) * batch * channels
    lines = weights + (entry * groups + group) * padded * (2 * WIDTH)
    ends += (chunk.to(tl.int64) * batch + entry) * state_size * channels
    handed += (chunk.to(tl.int64) * batch + entry) * state_size * channels
    spans += (chunk.to(tl.int64) * batch + entry) * channels
    span = tl.zeros([1, BLOCK], ACC)
    for tile in range(tiles):
        number = chunk * tiles + tile
        start = number * STEPS
        this_start = starts + (number.to(tl.int64) * per_tile + entry * channels) * state_size
        next_start = ends
        if tile + 1 < tiles:
            next_start = this_start + per_tile * state_size
        tl.store(prefixes + number.to(tl.int64) * per_tile + entry * channels + c, span, mask=owned)
        places, dts, values = _tile(
            start, length, rows, u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
            bias, order, entry, c, owned,
            STEPS, SOFTPLUS, WIDE, ACC,
        )  # fmt: skip
        upstream = _upstream(
            start, places, length, rows, context, grad_y, grad_y_row, grad_y_batch, entry, c, owned, STEPS, WIDE, ACC
        )
        for first in range(0, state_size, STATES):
            n = first + tl.arange(0, STATES)[:, None]
            some = owned & (n < state_size)
            weight = lines + start.to(tl.int64) * (2 * WIDTH) + n * STEPS
            inflow = _weights(weight, STEPS, ACC)
            begun = some & (owned * 0 + number > chunk * tiles)
            decay = tl.load(decays + n * channels + c, mask=some, other=0.0)
            h = tl.load(this_start + n * channels + c, mask=begun, other=0.0)
            place = handed + n * channels + c
            before = tl.load(place, mask=begun, other=0.0)
            outflow = _weights(weight + WIDTH * STEPS, STEPS, ACC)
            fades = ()
            for i in tl.static_range(STEPS):
                fades = fades + (tl.exp2(dts[i] * decay),)
                h = fades[i] * h + dts[i] * values[i] * inflow[i]
            gradient = tl.zeros([STATES, BLOCK], ACC)
            for i in tl.static_range(STEPS - 1, -1, -1):
                gradient = fades[i] * (outflow[i] * upstream[i] + gradient)
            tl.store(next_start + n * channels + c, h, mask=some)
            tl.store(place, before + _finite(tl.exp2(span * decay), ACC) * gradient, mask=some)
        for i in tl.static_range(STEPS):
            span += dts[i]
        tl.debug_barrier()
    tl.store(spans + c, span, mask=owned)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def finish_chunks_backward(
    grad_y, grad_y_row, grad_y_batch,
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
    bias, decays, weights, D, order,
    starts, prefixes, entering, leaving,
    grad_u, grad_context, grad_delta, grad_A, grad_weights, grad_D, grad_bias,
    batch, channels, groups, state_size, length, rows, tiles, padded,
    STEPS: tl.constexpr, STATES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Run every chunk from its last tile to its first, with what enters it and the gradient of what leaves it known.

    ``entering`` and ``leaving`` are (chunk, batch, state, channel); the latter ends as the gradient of what enters.
    ``grad_A`` has these axes too, ``grad_D`` and ``grad_bias`` are (chunk, batch, channel): sums over a chunk.
    ``grad_weights`` are sums over a block, in the order of the sequence: (block, batch, group, 2, state, padded). As
    16 of them are summed at a time, ``STEPS`` is 8, and ``BLOCK`` 64.
    """
    chunk, entry, group, block, c, owned = _program(batch, channels, groups, BLOCK)
    lines = weights + (entry * groups + group) * padded * (2 * WIDTH)
    per_tile = tl.full([], 1, tl.int64) * batch * channels
    ends = (chunk.to(tl.int64) * batch + entry) * channels
    entering += ends * state_size
    leaving += ends * state_size
    grad_A += ends * state_size
    grad_delta += entry * rows * channels + c
    grad_u += entry * length * channels
    if grad_context is not None:  # where its first row would be row 0
        grad_context += (entry * (rows - length) - length) * channels
    strip = ((block.to(tl.int64) * batch + entry) * groups + group) * 2 * state_size * padded
    sum_D = tl.zeros([1, BLOCK], ACC)
    sum_bias = tl.zeros([1, BLOCK], ACC)
    direct = tl.zeros([1, BLOCK], ACC)
    if D is not None:
        direct = tl.load(D + c, mask=owned, other=0.0)
    raws = delta + entry * delta_batch
    for back in range(tiles):
        number = chunk * tiles + tiles - 1 - back
        start = number * STEPS
        place_of_tile = number.to(tl.int64) * per_tile + entry * channels
        prefix = tl.load(prefixes + place_of_tile + c, mask=owned, other=0.0)
        places, dts, values = _tile(
            start, length, rows, u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
            bias, order, entry, c, owned,
            STEPS, SOFTPLUS, WIDE, ACC,
        )  # fmt: skip
        upstream = _upstream(
            start, places, length, rows, context, grad_y, grad_y_row, grad_y_batch, entry, c, owned, STEPS, WIDE, ACC
        )
        grad_x = ()
        grad_dt = ()
        for _i in tl.static_range(STEPS):
            grad_x = grad_x + (tl.zeros([1, BLOCK], ACC),)
            grad_dt = grad_dt + (tl.zeros([1, BLOCK], ACC),)
        for first in range(0, state_size, STATES):
            n = first + tl.arange(0, STATES)[:, None]
            some = owned & (n < state_size)
            weight = lines + start.to(tl.int64) * (2 * WIDTH) + n * STEPS
            inflow = _weights(weight, STEPS, ACC)
            begun = some & (owned * 0 + number > chunk * tiles)
            continued = some & (owned * 0 + number < chunk * tiles + tiles - 1)
            of_state = n * channels + c
            decay = tl.load(decays + of_state, mask=some, other=0.0)
            h = tl.load(starts + place_of_tile * state_size + of_state, mask=begun, other=0.0)
            h += _finite(tl.exp2(prefix * decay), ACC) * tl.load(entering + of_state, mask=some, other=0.0)
            # For every step: the decay, and what it leaves of the state before.
            fades = ()
            left = ()
            for i in tl.static_range(STEPS):
                fades = fades + (tl.exp2(dts[i] * decay),)
                left = left + (fades[i] * h,)
                h = left[i] + dts[i] * values[i] * inflow[i]
            handed = tl.load(leaving + of_state, mask=some, other=0.0)
            sum_A = tl.load(grad_A + of_state, mask=continued, other=0.0)
            outflow = _weights(weight + WIDTH * STEPS, STEPS, ACC)
            # From the last step to the first; what is new comes in front.
            new_x = ()
            new_dt = ()
            of_entries = ()
            of_exits = ()
            for i in tl.static_range(STEPS - 1, -1, -1):
                x = dts[i] * values[i]
                gradient = handed + outflow[i] * upstream[i]
                of_entries = (gradient * x,) + of_entries
                of_exits = (upstream[i] * (left[i] + x * inflow[i]),) + of_exits
                of_exponent = gradient * left[i]
                sum_A += of_exponent * dts[i]
                new_x = (grad_x[i] + tl.sum(gradient * inflow[i], axis=0, keep_dims=True),) + new_x
                new_dt = (grad_dt[i] + tl.sum(of_exponent * decay, axis=0, keep_dims=True),) + new_dt
                handed = gradient * fades[i]
            grad_x = new_x
            grad_dt = new_dt
            tl.store(leaving + of_state, handed, mask=some)
            tl.store(grad_A + of_state, sum_A, mask=some)
            sums, lane = _over_channels(of_entries + of_exits, n)
            line = strip + ((lane // STEPS) * state_size + n) * padded.to(tl.int64) + start + lane % STEPS
            tl.store(grad_weights + line, sums, mask=(lane < 2 * STEPS) & (lane * 0 + n < state_size))
        for i in tl.static_range(STEPS):
            present = owned & (owned * 0 + start + i < rows)
            raw = tl.load(raws + _offset(places[i], delta_row, WIDE) + c, mask=owned, other=0.0).to(ACC)
            if bias is not None:
                raw += tl.load(bias + c, mask=owned, other=0.0)
            total = (grad_x[i] * values[i] + grad_dt[i] * LN_2) * _slope(raw, SOFTPLUS, ACC)
            sum_bias += tl.where(present, total, 0.0)
            sum_D += upstream[i] * values[i]
            offset = _offset(places[i], channels, WIDE)
            tl.store(grad_delta + offset, total.to(grad_delta.dtype.element_ty), mask=present)
            of_input = grad_x[i] * dts[i] + direct * upstream[i]
            line = grad_u
            if grad_context is not None:
                line = tl.where(places[i] < length, grad_u, grad_context)
            tl.store(line + offset + c, of_input.to(grad_u.dtype.element_ty), mask=present)
        tl.debug_barrier()
    tl.store(grad_D + ends + c, sum_D, mask=owned)
    tl.store(grad_bias + ends + c, sum_bias, mask=owned)
