"""Counts what passes over tensors cost, real or fake: FLOPs, bytes, launches, live memory.

An op is a record of its FLOPs and of the bytes it reads and writes; a time is made of the records
only later (costs.py), so one walk serves any machine. What our own ops do inside is not seen from
outside: their products, row passes and workspaces are stated here, next to each other.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

FLOAT32 = 4  # bytes
FLASH_BACKWARD = 2.5  # times the forward pass: five products for two, the scores are made again
PASSES = {"lcpo::linear_logprob": 1, "lcpo::linear_logprob_backward": 4}  # over the logits
LOSS_PASSES = 3  # of the policy loss, over the logits: reduce them; read and rewrite them
HEAD_ROWS = {"cuda": 4096, "cpu": 512}  # rows of logits at once: chunk_tokens, or the CPU's block
HEAD_COLUMNS = 1024  # of a tile of linear_logprob on the CPU
GATHERS = ("aten::index", "aten::embedding", "aten::index_select", "aten::gather")
SCATTERS = ("aten::index_copy_", "aten::index_put_", "aten::scatter_")
NO_WORK = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided")


class Record(NamedTuple):
    """One kernel, or several of a kind: "product", "attention" or "rows" (bound by memory)."""

    kind: str
    dtype: torch.dtype
    flops: float
    bytes: float


class Head(NamedTuple):
    """The sizes of an op that applies the LM head."""

    rows: int
    hidden: int
    vocab: int
    itemsize: int  # of logits
    products: int


class Meter(TorchDispatchMode):
    """Counts the ops below it on tensors of `device`; `label` says what new memory is for.

    `pairs` is what attention is about to see, summed over the sequences: pairs of a query and a key
    in a packed pass, cached tokens in a decode step. Fake tensors do not know.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.label, self.pairs = device, "other", 0
        self.records: list[Record] = []
        self.launches = 0
        self.live: Counter[str] = Counter()  # bytes by label
        self.peak: Counter[str] = Counter()  # as `live` at the moment when it was most in all
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    @contextlib.contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """New memory in the block is for `label`."""
        before, self.label = self.label, label
        yield
        self.label = before

    def reset(self) -> None:
        """Forgets the records and the peak; what is live stays."""
        self.records, self.launches, self.peak = [], 0, +self.live

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Memory that is already there is for `label` from now on."""
        key = tensor.untyped_storage()._cdata
        reference, before, size = self._storages[key]
        self._storages[key] = (reference, label, size)
        self.live[before] -= size
        self.live[label] += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the op, then counts it."""
        kwargs = kwargs or {}
        name = func._schema.name
        fused_adamw = name.startswith("aten::_fused_adamw_")  # no fake kernel; works in place
        out = None if fused_adamw else func(*args, **kwargs)
        taken = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        given = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not any(x.device.type == self.device for x in (*taken, *given)):
            return out
        for tensor in given:
            if tensor.device.type == self.device:
                self._remember(tensor)
        head = _head(name, args)
        self._see_peak(_workspace(name, args, head, self.device))
        if not (func.is_view or name in NO_WORK or name.startswith("prim::")):
            self.launches += 1
            self.records += self._count(func, name, args, kwargs, out, taken, given, head)
        return out

    def _count(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: Any,
        out: Any,
        taken: list[Tensor],
        given: list[Tensor],
        head: Head | None,
    ) -> list[Record]:
        dtype = next((x.dtype for x in (*taken, *given) if x.is_floating_point()), torch.int64)
        if head is not None:
            return _head_records(name, args, head)
        if name in ATTENTION:
            flops, moved = ATTENTION[name](args, self.pairs)
            return [Record("attention", dtype, flops, moved + _bytes(given))]
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        if name == "lcpo::linear":
            flops = 2 * args[0].numel() * args[1].shape[0]
        if name in GATHERS:
            moved = 2 * _bytes(given)
        elif name in SCATTERS:
            moved = 2 * _bytes(taken[-1:])
        else:
            moved = _bytes(taken) + _bytes(given or _written(func, args))
        return [Record("product" if flops else "rows", dtype, flops, moved)]

    def _remember(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            _, label, size = self._storages.pop(key)
            self.live[label] -= size

        self._storages[key] = (weakref.ref(storage, freed), self.label, size)
        self.live[self.label] += size

    def _see_peak(self, workspace: float) -> None:
        if self.live.total() + workspace > self.peak.total():
            self.peak = +self.live
            self.peak["workspace"] += int(workspace)


def _written(func: Any, args: tuple[Any, ...]) -> list[Any]:
    """What an op that returns nothing changes in place: optimizers."""
    aliases = (argument.alias_info for argument in func._schema.arguments)
    pairs = zip(aliases, args, strict=False)
    return tree_leaves([x for alias, x in pairs if alias is not None and alias.is_write])


def _head(name: str, args: tuple[Any, ...]) -> Head | None:
    if name not in PASSES and name != "lcpo::linear_policy_loss":
        return None
    products = 1
    if name != "lcpo::linear_logprob":
        products += sum(args[-2:])  # need_hidden, need_weight
    hidden, weight = args[2:4] if name.endswith("backward") else args[:2]
    vocab = next(x for x in args if type(x) is int)  # vocab_size, the first integer of all three
    return Head(*hidden.shape, vocab, weight.itemsize, products)


def _head_records(name: str, args: tuple[Any, ...], head: Head) -> list[Record]:
    """Products of a block of rows with the head, and the row passes over its logits."""
    dtype = next(x.dtype for x in args if isinstance(x, Tensor) and x.ndim == 2)
    chunks = -(-head.rows // HEAD_ROWS["cuda"])
    logits = head.rows * head.vocab * head.itemsize
    weight = head.vocab * head.hidden * head.itemsize
    flops = 2 * head.rows * head.hidden * head.vocab
    moved = logits + chunks * weight
    passes = PASSES.get(name, LOSS_PASSES if head.products > 1 else 1)
    return [
        *(Record("product", dtype, flops, moved) for _ in range(head.products)),
        Record("rows", dtype, 0, passes * logits),
    ]


def _workspace(name: str, args: tuple[Any, ...], head: Head | None, device: str) -> float:
    """Bytes that an op takes beside its outputs while it runs."""
    if head is None:
        # FlashAttention sums the gradient of q in float32.
        flash = name == "lcpo::varlen_attention_backward" and device == "cuda"
        return FLOAT32 * args[1].numel() if flash else 0
    rows = min(head.rows, HEAD_ROWS[device])
    if head.products == 1 and device == "cpu":
        return rows * min(HEAD_COLUMNS, head.vocab) * head.itemsize
    tile = rows * head.vocab * head.itemsize
    if head.products == 1 or head.itemsize == FLOAT32:  # sums are the outputs themselves
        return tile
    # Sums in float32 (those for a master are an output), and on a GPU the product that is about to
    # be added to one of them.
    for_master = name == "lcpo::linear_policy_loss" and args[2] is not None
    sums = (head.rows + (0 if for_master else head.vocab)) * head.hidden * FLOAT32
    product = max(rows, head.vocab) * head.hidden * FLOAT32 if device == "cuda" else 0
    return tile + sums + product


def _packed(args: tuple[Any, ...], pairs: int) -> tuple[float, float]:
    """(FLOPs, bytes read): two products, over the pairs that the mask keeps."""
    return 4 * args[0].shape[1] * args[0].shape[2] * pairs, _bytes(args[:3])


def _packed_backward(args: tuple[Any, ...], pairs: int) -> tuple[float, float]:
    return FLASH_BACKWARD * _packed(args[1:], pairs)[0], _bytes(args[:6])


def _paged(args: tuple[Any, ...], tokens: int) -> tuple[float, float]:
    query, cache = args[:2]
    width = cache.shape[-2] * cache.shape[-1]
    moved = 2 * tokens * width * cache.itemsize + _bytes([query])
    return 4 * query.shape[1] * query.shape[2] * tokens, moved


ATTENTION: dict[str, Callable[[tuple[Any, ...], int], tuple[float, float]]] = {
    "lcpo::varlen_attention": _packed,
    "lcpo::varlen_attention_backward": _packed_backward,
    "lcpo::paged_decode_attention": _paged,
}


def _bytes(tensors: Any) -> int:
    return sum(x.numel() * x.itemsize for x in tensors if isinstance(x, Tensor))
