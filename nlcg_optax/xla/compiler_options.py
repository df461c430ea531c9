"""Options with which XLA compiles many small loops faster on CPU."""

import functools
from typing import Any

import jax

# One LLVM module for all loops, from the emitters that write into one, instead of one
# per loop: compiling `minimize` with ten parameters takes .6 s in place of 1.4, and the
# program is as fast or faster (jaxlib 0.10.2).
ONE_MODULE: dict[str, Any] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# Without LLVM's optimization it takes .4 s. For arrays of some hundred numbers the
# program spends its time in calls, hardly in loops.
UNOPTIMIZED: dict[str, Any] = {**ONE_MODULE, "xla_backend_optimization_level": 0}


def compiler_options(*, is_small: bool) -> dict[str, Any] | None:
    """Options for `jax.jit`; None where they are unknown.

    Args:
      is_small: whether all arrays are small and the program runs only briefly.

    Returns:
      The options.

    Examples:
      >>> import jax
      >>> jax.jit(lambda x: 2 * x, compiler_options=compiler_options(is_small=True))(3.)
      Array(6., dtype=float32, weak_type=True)
    """
    if jax.default_backend() != "cpu" or not _are_known():
        return None
    return UNOPTIMIZED if is_small else ONE_MODULE


@functools.cache
def _are_known() -> bool:
    """Whether this version of XLA takes them; they are not part of its interface."""
    lowered = jax.jit(lambda x: x).lower(0.0)
    try:
        lowered.compile(compiler_options=UNOPTIMIZED)
    except Exception:
        return False
    return True
