"""Triton kernels for CUDA; `kernels.implementations` imports a module at its op's first call.

One file an op, each with its math, its tiling and why in its docstring. Rules that hold in all:

- Row offsets are 64-bit: row · V passes 2**31 at row 14,135 of the 1.5B model's logits.
- Values are widened to float32 as they are loaded. Arithmetic in bfloat16 would round at each step,
  and Triton's interpreter, which the tests run in, computes it wrongly.
- Float scalars are compile-time constants: they are settings of a run, and a Python float that
  slips into an expression would make it float64.
- No autotuning, as packed batches differ in size at each step, and no float atomics: sums that
  cross programs go through partial sums and a second launch, so that a result never depends on
  timing.
- `where`, never a product with a mask: inf · 0 is NaN.
"""
