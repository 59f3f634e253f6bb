"""Attention on CUDA by the libraries that have it: the flash-attn package, else torch's own."""

from kernels.cuda_impl.loading import flash_attn

__all__ = ["flash_attn"]
