"""The compiled C++ backend, loaded at first use through its plain C interface: one file an op."""

from kernels.cpp_impl.loading import library, why_missing

__all__ = ["library", "why_missing"]
