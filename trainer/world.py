"""The processes of one run: who is who, what they tell each other, how one's end is all's end.

`torchrun --nproc-per-node=N -m trainer.run ...` starts N of them, called ranks; docs/distributed.md
says what each does. A run of one process has no process group, and nothing here costs it anything.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainer.signals import Stopped

# How long a rank waits for another: more than ranks can differ in one step's rollouts.
PATIENCE = timedelta(minutes=30)
LAST_WORDS = 5.0  # seconds in which the ranks that are left ask each other what has happened
FAILURE = "failure"  # key of the store

Item = TypeVar("Item")


class RankError(RuntimeError):
    """Another process of the run has failed; the message names its rank and what it said."""


@dataclass(frozen=True)
class World:
    """This process, `rank` of `size`. Every rank must come to each call, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that prints, logs and saves."""
        return self.rank == 0

    def meet(self, tensors: Iterable[torch.Tensor]) -> None:
        """Sums each tensor over the ranks, in place and to the same bits on all of them."""
        if self.size == 1:
            return
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    def gather(self, item: Item) -> list[Item]:
        """The item of each rank, in their order, on all of them."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
        return found

    def tell(self, item: Item) -> Item:
        """Rank 0's item, on all ranks."""
        return self.gather(item)[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Behind it all ranks are there. Stopped in one of them is raised in each, and only then.

        Everything that may raise Stopped goes in here: a rank that left alone would leave the
        others waiting.
        """
        stopped = False
        try:
            yield
        except Stopped:
            stopped = True
        if any(self.gather(stopped)):
            raise Stopped


ALONE = World()


def leads() -> bool:
    """Whether this process is rank 0, as torchrun has told it; alone it is. Known before Joined."""
    return os.environ.get("RANK", "0") == "0"


class Muted:
    """Stands where only rank 0 has something to write or show: takes any call, does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def __enter__(self) -> Muted:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Joined:
    """`with Joined(device) as world:` holds a run; it joins the others that torchrun started.

    An error that leaves the block is told to the other ranks. Theirs, noticed by a connection that
    breaks or by one that is silent for `patience`, becomes a RankError here.
    """

    def __init__(self, device: str, patience: timedelta = PATIENCE) -> None:
        self.world = World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        self.device, self.patience = device, patience

    def __enter__(self) -> World:
        if self.world.size > 1:
            if self.device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            store, rank, size = next(dist.rendezvous("env://", timeout=self.patience))
            self.store = dist.PrefixStore("ranks", store)
            dist.init_process_group(
                # Objects and small tensors of the CPU go by gloo, which notices a lost rank.
                "cpu:gloo,cuda:nccl" if self.device == "cuda" else "gloo",
                store=dist.PrefixStore("group", store),
                rank=rank,
                world_size=size,
                timeout=self.patience,
            )
        return self.world

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world.size == 1:
            return
        if error is None:
            dist.destroy_process_group()
            return
        try:
            if not _of_the_link(error):
                said = f"rank {self.world.rank}: {type(error).__name__}: {error}"
                self.store.compare_set(FAILURE, "", said)
                return
            reason = self._ask_the_others()
        except RuntimeError:  # rank 0 holds the store where torchrun does not
            reason = "rank 0, or what started the run, is gone"
        if _of_the_link(error):
            raise RankError(reason) from error

    def _ask_the_others(self) -> str:
        """What the rank that failed first has said, or which ones say nothing any more."""
        self.store.set(f"here/{self.world.rank}", "")
        end = time.monotonic() + LAST_WORDS
        while time.monotonic() < end:
            if self.store.check([FAILURE]):
                return self.store.get(FAILURE).decode()
            time.sleep(0.1)
        ranks = range(self.world.size)
        silent = [str(r) for r in ranks if not self.store.check([f"here/{r}"])]
        if not silent:
            return "the ranks lost their connection, and none says why"
        return f"no word from rank {', '.join(silent)}: killed, or its machine is gone"


def _of_the_link(error: BaseException) -> bool:
    """Whether it comes from a connection: gloo's errors are RuntimeErrors that name its files."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
