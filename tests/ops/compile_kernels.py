"""Compile every kernel of the GPU scan for a compute capability, without such a GPU, as the launches would.

Prints name, bytes of machine code and bytes of shared memory for each. Run by a test in a process of its own, since
kernels are made either for the compiler or for the interpreter.
"""

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nnunet_logvmamba.ops.scan import triton_kernels, triton_launch
from nnunet_logvmamba.ops.scan.triton_kernels import Rows, Sizes

ALIGNED = [["tt.divisibility", 16]]
HALF = "*fp16"
TYPES = (
    dict.fromkeys(("u", "context", "delta", "grad_y"), Rows(HALF, "i32", "i32"))
    | dict.fromkeys(("y", "grad_u", "grad_context", "grad_delta"), HALF)
    | dict.fromkeys(("length", "rows", "tiles", "padded", "chunks"), "i32")
    | {"sizes": Sizes("i32", "i32", "i32", "i32"), "order": "*i64"}
)


def compile_kernel(kernel, capability: int, **constants) -> None:
    """Compile with half precision in and out, context, order, D and bias, and 16 states."""
    signature, alignments = {}, {}
    for place, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else TYPES.get(name, "*fp32")
        if isinstance(signature[name], tuple):
            alignments |= {(place, i): ALIGNED for i, kind in enumerate(signature[name]) if kind.startswith("*")}
        elif signature[name].startswith("*"):
            alignments[(place,)] = ALIGNED
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=alignments)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(triton_launch.OPTIONS))
    print(kernel.__name__, len(compiled.asm["cubin"]), compiled.metadata.shared, flush=True)


def main() -> None:
    """Compile all kernels for all tiles of the tables."""
    capability = int(sys.argv[1])
    options = {"WIDTH": 16, "SOFTPLUS": True, "WIDE": False, "ACC": tl.float32}
    for tiles, kernels in (
        (triton_launch.FORWARD_TILES, (triton_kernels.sum_chunks, triton_kernels.finish_chunks)),
        (
            triton_launch.BACKWARD_TILES,
            (triton_kernels.sum_chunks_backward, triton_kernels.finish_chunks_backward),
        ),
    ):
        for _, tile in tiles:
            for kernel in kernels:
                compile_kernel(kernel, capability, STEPS=tile.steps, STATES=tile.states, BLOCK=tile.channels, **options)
    for reverse in (False, True):
        compile_kernel(triton_kernels.carry, capability, BLOCK=triton_launch.CARRY_BLOCK, REVERSE=reverse)


if __name__ == "__main__":
    main()
