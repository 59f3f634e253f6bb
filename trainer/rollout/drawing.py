"""What every rollout engine offers: samples as they end, or all of them at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from trainer.rollout.requests import Request, Sampling
from trainer.types import Completion


class Drawing(ABC):
    """An engine by its `stream`."""

    @abstractmethod
    def stream(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[int, Completion]]:
        """(index of the request, completion) as samples end; `on_progress(done, total)`."""

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Completion]:
        """One completion a request, in their order; see `stream`."""
        done = dict(self.stream(requests, sampling, on_progress))
        return [done[index] for index in range(len(requests))]
