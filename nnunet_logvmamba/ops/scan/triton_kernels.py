"""The scan for GPUs: kernels only, the arithmetic of ``ops/README.md``.

A program is one warp and owns ``BLOCK`` channels of one batch entry and group, along one *chunk* of the sequence. It
walks over the chunk in *tiles* of ``STEPS`` steps, whose values stay in registers as tuples with an entry per step, and
within a tile over the states, ``STATES`` at a time. So each thread goes through the steps of its own channels in order,
nothing is summed across threads but the gradients of B and C, and the exponentials of a tile do not wait for one
another.

The weights B and C come packed, (batch, group, step, 2, WIDTH), in the order of the sequence, with zeros beyond the
last state and the last step.

A chunk does not know what enters it. So all chunks first run from zero (``sum_chunks``), then what leaves one enters
the next (``carry``), then they run for good (``finish_chunks``). From one tile to the next a state lies in global
memory.

Tensors have two axes, (state, channel); one of them has size 1 where it does not matter. Loads give the type ``ACC``,
float32 or float64, and stores round. Offsets within a batch entry are 64-bit if WIDE, all others always. Numbers are
compared in full shape, hence ``c * 0 + ...``: Triton's interpreter cannot spread a single truth value.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
SOFTPLUS_THRESHOLD = tl.constexpr(20.0)
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
    """The step: softplus(x) = max(x, 0) + log(1 + exp(-|x|)), with log(1 + z) = 2 artanh(z / (2 + z)) as a series."""
    if not SOFTPLUS:
        return raw
    TERMS: tl.constexpr = 17 if ACC == tl.float64 else 8  # noqa: SIM300 - a dtype cannot compare itself
    small = tl.exp(-tl.abs(raw))
    ratio = small / (2.0 + small)
    square = ratio * ratio
    series = square * 0.0
    for i in tl.static_range(TERMS):
        series = series * square + 1.0 / (2 * (TERMS - i) - 1)
    return tl.where(raw > SOFTPLUS_THRESHOLD, raw, tl.maximum(raw, 0.0) + 2.0 * ratio * series)


@triton.jit
def _slope(raw, SOFTPLUS: tl.constexpr):
    """Derivative of the step: 1 above the threshold, else the sigmoid."""
    if not SOFTPLUS:
        return raw * 0.0 + 1.0
    small = tl.exp(-tl.abs(raw))
    sigmoid = tl.where(raw >= 0.0, 1.0, small) / (1.0 + small)
    return tl.where(raw > SOFTPLUS_THRESHOLD, 1.0, sigmoid)


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
    within = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    return chunk, entry.to(tl.int64), group.to(tl.int64), block, group * per_group + within, within < per_group


@triton.jit
def _offset(row, stride, c, WIDE: tl.constexpr):
    """Offset of channels within a batch entry; 32 bits take half the registers."""
    return row.to(tl.int64) * stride + c if WIDE else row * stride + c


@triton.jit
def _tile(
    start, length, rows, u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
    bias, order, entry, c, owned,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Row, step and input for every step of a tile. Beyond the end it is the last row, and the step is zero, so that a
    state stays.
    """
    inputs = u + entry * u_batch
    raws = delta + entry * delta_batch
    places = ()
    dts = ()
    values = ()
    for i in tl.static_range(STEPS):
        row = tl.minimum(start + i, rows - 1)
        if order is not None:
            row = tl.load(order + row).to(tl.int32)
        raw = tl.load(raws + _offset(row, delta_row, c, WIDE), mask=owned, other=0.0).to(ACC)
        if bias is not None:
            raw += tl.load(bias + c, mask=owned, other=0.0)
        if context is None:
            value = tl.load(inputs + _offset(row, u_row, c, WIDE), mask=owned, other=0.0).to(ACC)
        else:
            inner = owned & (c * 0 + row < length)
            value = tl.load(inputs + _offset(row, u_row, c, WIDE), mask=inner, other=0.0).to(ACC)
            place = context + entry * context_batch + _offset(row - length, context_row, c, WIDE)
            value += tl.load(place, mask=owned & (c * 0 + row >= length), other=0.0).to(ACC)
        places = places + (row,)
        dts = dts + (tl.where(c * 0 + start + i < rows, _step(raw, SOFTPLUS, ACC), 0.0),)
        values = values + (value,)
    return places, dts, values


@triton.jit
def _upstream(
    start, places, length, rows, grad_y, grad_y_row, grad_y_batch, entry, c, owned,
    STEPS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of the output for every step of a tile; zero for rows that have none, and beyond the end."""
    base = grad_y + entry * grad_y_batch
    upstream = ()
    for i in tl.static_range(STEPS):
        kept = owned & (c * 0 + start + i < rows) & (c * 0 + places[i] < length)
        place = base + _offset(places[i], grad_y_row, c, WIDE)
        upstream = upstream + (tl.load(place, mask=kept, other=0.0).to(ACC),)
    return upstream


@triton.jit
def _merge(parts, lane, BIT: tl.constexpr, COUNT: tl.constexpr):
    """Half as many values: where two channels differ in one bit only, the first of them adds up what both have of every
    first value, the other what both have of every second one.
    """
    first = (lane & BIT) == 0
    merged = ()
    for i in tl.static_range(COUNT // 2):
        kept = tl.where(first, parts[2 * i], parts[2 * i + 1])
        given = tl.where(first, parts[2 * i + 1], parts[2 * i])
        merged = merged + (kept + tl.gather(given, lane ^ BIT, 1),)
    return merged


@triton.jit
def _over_channels(parts, lane):
    """Sums over 32 channels of 32 values: the n-th channel gets the sum of the n-th value.

    One exchange between channels for a value, where ``tl.sum`` takes five.
    """
    pairs = _merge(parts, lane, 1, 32)
    fours = _merge(pairs, lane, 2, 16)
    eights = _merge(fours, lane, 4, 8)
    sixteens = _merge(eights, lane, 8, 4)
    all_of_them = _merge(sixteens, lane, 16, 2)
    return all_of_them[0]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def sum_chunks(
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch, bias, A, weights, order,
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
        for first in range(0, state_size, STATES):
            n = first + tl.arange(0, STATES)[:, None]
            some = owned & (n < state_size)
            weight = lines + start.to(tl.int64) * (2 * WIDTH) + n
            decay = tl.load(A + n * channels + c, mask=some, other=0.0) * LOG2_E
            place = ends + n * channels + c
            h = tl.load(place, mask=some & (c * 0 + number > chunk * tiles), other=0.0)
            for i in tl.static_range(STEPS):
                h = tl.exp2(dts[i] * decay) * h + dts[i] * values[i] * tl.load(weight + i * 2 * WIDTH).to(ACC)
            tl.store(place, h, mask=some)
        tl.debug_barrier()
    tl.store(spans + c, span, mask=owned)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def carry(
    states, spans, A, first,
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
    decay = tl.load(A + each % (state_size * channels), mask=owned, other=0.0) * LOG2_E
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
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch, bias, A, weights, D, order,
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
    y += entry * length * channels
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
        for first in range(0, state_size, STATES):
            n = first + tl.arange(0, STATES)[:, None]
            some = owned & (n < state_size)
            weight = lines + start.to(tl.int64) * (2 * WIDTH) + n
            decay = tl.load(A + n * channels + c, mask=some, other=0.0) * LOG2_E
            place = states + n * channels + c
            h = tl.load(place, mask=some, other=0.0)
            sums = ()
            for i in tl.static_range(STEPS):
                h = tl.exp2(dts[i] * decay) * h + dts[i] * values[i] * tl.load(weight + i * 2 * WIDTH).to(ACC)
                sums = sums + (
                    outputs[i] + tl.sum(tl.load(weight + i * 2 * WIDTH + WIDTH).to(ACC) * h, axis=0, keep_dims=True),
                )
            outputs = sums
            tl.store(place, h, mask=some)
        for i in tl.static_range(STEPS):
            kept = owned & (c * 0 + start + i < rows) & (c * 0 + places[i] < length)
            place = y + places[i].to(tl.int64) * channels + c
            tl.store(place, outputs[i].to(y.dtype.element_ty), mask=kept)
        tl.debug_barrier()


@triton.jit(do_not_specialize=UNSPECIALIZED)
def sum_chunks_backward(
    grad_y, grad_y_row, grad_y_batch,
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
    bias, A, weights, order,
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
            start, places, length, rows, grad_y, grad_y_row, grad_y_batch, entry, c, owned, STEPS, WIDE, ACC
        )
        for first in range(0, state_size, STATES):
            n = first + tl.arange(0, STATES)[:, None]
            some = owned & (n < state_size)
            weight = lines + start.to(tl.int64) * (2 * WIDTH) + n
            begun = some & (c * 0 + number > chunk * tiles)
            decay = tl.load(A + n * channels + c, mask=some, other=0.0) * LOG2_E
            h = tl.load(this_start + n * channels + c, mask=begun, other=0.0)
            place = handed + n * channels + c
            gradient = tl.load(place, mask=begun, other=0.0)
            fade = _finite(tl.exp2(span * decay), ACC)
            for i in tl.static_range(STEPS):
                a = tl.exp2(dts[i] * decay)
                h = a * h + dts[i] * values[i] * tl.load(weight + i * 2 * WIDTH).to(ACC)
                fade = _finite(fade * a, ACC)
                gradient += fade * (tl.load(weight + i * 2 * WIDTH + WIDTH).to(ACC) * upstream[i])
            tl.store(next_start + n * channels + c, h, mask=some)
            tl.store(place, gradient, mask=some)
        for i in tl.static_range(STEPS):
            span += dts[i]
        tl.debug_barrier()
    tl.store(spans + c, span, mask=owned)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def finish_chunks_backward(
    grad_y, grad_y_row, grad_y_batch,
    u, u_row, u_batch, context, context_row, context_batch, delta, delta_row, delta_batch,
    bias, A, weights, D, order,
    starts, prefixes, entering, leaving,
    grad_u, grad_context, grad_delta, grad_A, grad_weights, grad_D, grad_bias,
    batch, channels, groups, state_size, length, rows, tiles, padded,
    STEPS: tl.constexpr, STATES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Run every chunk from its last tile to its first, with what enters it and the gradient of what leaves it known.

    ``entering`` and ``leaving`` are (chunk, batch, state, channel); the latter ends as the gradient of what enters.
    ``grad_A`` has these axes too, ``grad_D`` and ``grad_bias`` are (chunk, batch, channel): sums over a chunk.
    ``grad_weights`` are sums over a block, in the order of the sequence: (block, batch, group, 2, state, padded). Two
    weights a step and 32 channels: ``STEPS`` is 16 and ``BLOCK`` 32.
    """
    chunk, entry, group, block, c, owned = _program(batch, channels, groups, BLOCK)
    lines = weights + (entry * groups + group) * padded * (2 * WIDTH)
    per_tile = tl.full([], 1, tl.int64) * batch * channels
    ends = (chunk.to(tl.int64) * batch + entry) * channels
    entering += ends * state_size
    leaving += ends * state_size
    grad_A += ends * state_size
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
            start, places, length, rows, grad_y, grad_y_row, grad_y_batch, entry, c, owned, STEPS, WIDE, ACC
        )
        grad_x = ()
        grad_dt = ()
        for _i in tl.static_range(STEPS):
            grad_x = grad_x + (tl.zeros([1, BLOCK], ACC),)
            grad_dt = grad_dt + (tl.zeros([1, BLOCK], ACC),)
        for first in range(0, state_size, STATES):
            n = first + tl.arange(0, STATES)[:, None]
            some = owned & (n < state_size)
            weight = lines + start.to(tl.int64) * (2 * WIDTH) + n
            begun = some & (c * 0 + number > chunk * tiles)
            continued = some & (c * 0 + number < chunk * tiles + tiles - 1)
            of_state = n * channels + c
            rate = tl.load(A + of_state, mask=some, other=0.0)
            decay = rate * LOG2_E
            h = tl.load(starts + place_of_tile * state_size + of_state, mask=begun, other=0.0)
            h += _finite(tl.exp2(prefix * decay), ACC) * tl.load(entering + of_state, mask=some, other=0.0)
            # For every step: the decay, what it leaves of the state before, and the weight of the input.
            fades = ()
            left = ()
            entries = ()
            for i in tl.static_range(STEPS):
                fades = fades + (tl.exp2(dts[i] * decay),)
                left = left + (fades[i] * h,)
                entries = entries + (tl.load(weight + i * 2 * WIDTH).to(ACC),)
                h = left[i] + dts[i] * values[i] * entries[i]
            handed = tl.load(leaving + of_state, mask=some, other=0.0)
            sum_A = tl.load(grad_A + of_state, mask=continued, other=0.0)
            # From the last step to the first; what is new comes in front.
            new_x = ()
            new_dt = ()
            of_entries = ()
            of_exits = ()
            for i in tl.static_range(STEPS - 1, -1, -1):
                x = dts[i] * values[i]
                gradient = handed + tl.load(weight + i * 2 * WIDTH + WIDTH).to(ACC) * upstream[i]
                of_entries = (gradient * x,) + of_entries
                of_exits = (upstream[i] * (left[i] + x * entries[i]),) + of_exits
                of_exponent = gradient * left[i]
                sum_A += of_exponent * dts[i]
                new_x = (grad_x[i] + tl.sum(gradient * entries[i], axis=0, keep_dims=True),) + new_x
                new_dt = (grad_dt[i] + tl.sum(of_exponent * rate, axis=0, keep_dims=True),) + new_dt
                handed = gradient * fades[i]
            grad_x = new_x
            grad_dt = new_dt
            tl.store(leaving + of_state, handed, mask=some)
            tl.store(grad_A + of_state, sum_A, mask=some)
            lane = tl.arange(0, BLOCK)[None, :] + n * 0
            sums = _over_channels(of_entries + of_exits, lane)
            line = strip + ((lane // STEPS) * state_size + n) * padded.to(tl.int64) + start + lane % STEPS
            tl.store(grad_weights + line, sums, mask=lane * 0 + n < state_size)
        for i in tl.static_range(STEPS):
            far = places[i].to(tl.int64)
            present = owned & (c * 0 + start + i < rows)
            raw = tl.load(raws + _offset(places[i], delta_row, c, WIDE), mask=owned, other=0.0).to(ACC)
            if bias is not None:
                raw += tl.load(bias + c, mask=present, other=0.0)
            total = (grad_x[i] * values[i] + grad_dt[i]) * _slope(raw, SOFTPLUS)
            sum_bias += tl.where(present, total, 0.0)
            sum_D += upstream[i] * values[i]
            of_delta = grad_delta + (entry * rows + far) * channels + c
            tl.store(of_delta, total.to(grad_delta.dtype.element_ty), mask=present)
            of_input = grad_x[i] * dts[i] + direct * upstream[i]
            inner = present & (c * 0 + places[i] < length)
            of_u = grad_u + (entry * length + far) * channels + c
            tl.store(of_u, of_input.to(grad_u.dtype.element_ty), mask=inner)
            if grad_context is not None:
                outer = present & (c * 0 + places[i] >= length)
                of_context = grad_context + (entry * (rows - length) + far - length) * channels + c
                tl.store(of_context, of_input.to(grad_context.dtype.element_ty), mask=outer)
        tl.debug_barrier()
    tl.store(grad_D + ends + c, sum_D, mask=owned)
    tl.store(grad_bias + ends + c, sum_bias, mask=owned)
