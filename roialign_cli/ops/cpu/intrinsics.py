"""What Numba does not offer: pointers, narrow floats, transposes in registers, writes past the caches.

Numba compiles these into their callers, and its disk cache does not notice changes to this file: after one, delete the cache
(`roialign doctor` names its folder).
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16
LINE = 64  # bytes of a cache line


@intrinsic
def address(typing, array):
    """Return the address of the first element of an array. It does not keep the array alive."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


@intrinsic
def pointer(typing, address, witness):
    """Cast an integer address to a C pointer to the element type of the witness array."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(witness.dtype)(types.int64, witness), codegen


@intrinsic
def widen_float(typing, value, unit):
    """Convert a stored element to the type of the sums."""

    def codegen(context, builder, signature, arguments):
        element = arguments[0]
        if value == types.uint16:
            wide = builder.shl(builder.zext(element, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(wide, ir.FloatType())
        if value == types.int16:
            return builder.fpext(builder.bitcast(element, ir.HalfType()), ir.FloatType())
        return element

    return unit.dtype(value, unit), codegen


@intrinsic
def narrow_float(typing, value, written):
    """Convert a sum to an element of the output, rounded to nearest even; NaN stays NaN."""

    def codegen(context, builder, signature, arguments):
        element = arguments[0]
        word, short = ir.IntType(32), ir.IntType(16)
        if value == types.float64 and written.dtype != types.float64:
            element = builder.fptrunc(element, ir.FloatType())
        if value == types.float32 and written.dtype == types.float64:
            return builder.fpext(element, ir.DoubleType())
        if written.dtype == types.uint16:
            bits = builder.bitcast(element, word)
            odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
            rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
            quiet = builder.or_(bits, ir.Constant(word, 0x400000))
            bits = builder.select(builder.fcmp_unordered("uno", element, element), quiet, rounded)
            return builder.trunc(builder.lshr(bits, ir.Constant(word, 16)), short)
        if written.dtype == types.int16:
            return builder.bitcast(builder.fptrunc(element, ir.HalfType()), short)
        return element

    return written.dtype(value, written), codegen


@intrinsic
def transpose(typing, source, source_stride, target, target_stride):
    """target[c][s] = source[s][c] of a LANES x LANES tile, in registers: log2(LANES) rounds of pairwise shuffles."""

    def codegen(context, builder, signature, arguments):
        source_pointer, stride_in, target_pointer, stride_out = arguments
        element = context.get_value_type(source.dtype)
        vector = ir.VectorType(element, LANES)
        width = context.get_abi_sizeof(element)

        def row(pointer, stride, i):
            address = builder.gep(pointer, [builder.mul(stride, ir.Constant(stride.type, i))])
            return builder.bitcast(address, vector.as_pointer())

        rows = [builder.load(row(source_pointer, stride_in, i), align=width) for i in range(LANES)]
        distance = 1
        while distance < LANES:
            lower = [LANES + lane - distance if lane & distance else lane for lane in range(LANES)]
            upper = [LANES + lane if lane & distance else lane + distance for lane in range(LANES)]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask) for mask in (lower, upper)]
            for i in range(LANES):
                if not i & distance:
                    pair = rows[i], rows[i + distance]
                    rows[i], rows[i + distance] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            distance *= 2
        for i, values in enumerate(rows):
            builder.store(values, row(target_pointer, stride_out, i), align=width)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic
def stream_line(typing, target, source):
    """Copy one cache line past the caches to an aligned target, so that the line is not read before it is overwritten."""

    def codegen(context, builder, signature, arguments):
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        to, origin = (builder.inttoptr(argument, line) for argument in arguments)
        store = builder.store(builder.load(origin, align=1), to, align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def fence(typing):
    """Order streamed lines before any later write that signals them to another thread."""

    def codegen(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
