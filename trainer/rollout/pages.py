"""Who holds which page of the KV cache: page numbers with reference counts, no tensors.

A block table is a plain list of page numbers. Samples of one prompt hold its pages together; the
last one, if it is not full, is copied by whoever writes to it while others still hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PagePool:
    """`pages` pages of `page_size` tokens each. Freed pages are handed out first: they are warm."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.pages, self.page_size = pages, page_size
        self.peak = 0  # most pages in use at once
        self._free = list(range(pages - 1, -1, -1))
        self._holders = [0] * pages

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.pages - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """How many pages `tokens` tokens fill."""
        return -(-tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """`count` free pages, each with one holder; the caller has made sure that there are."""
        assert count <= len(self._free), (count, len(self._free))
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        self.peak = max(self.peak, self.used)
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of `pages`."""
        for page in pages:
            assert self._holders[page] > 0, page
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder less for each of `pages`; those without any are free."""
        for page in pages:
            assert self._holders[page] > 0, page
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)

    def fork(self, block_table: Sequence[int], length: int) -> tuple[list[int], int | None]:
        """A holder more of a cached prompt of `length` tokens, with room for a token behind it.

        Takes one free page, whatever `length`. Returns (block table, page that must be copied to
        its last entry, or None).
        """
        full, partial = divmod(length, self.page_size)
        self.share(block_table[:full])
        return [*block_table[:full], *self.take(1)], block_table[full] if partial else None

    def adopt(self, block_table: Sequence[int], length: int) -> list[int]:
        """As fork, by the only one who still wants the prompt: nothing is copied.

        Takes over the caller's hold, and a free page only when the last one is full.
        """
        more = 0 if length % self.page_size else 1
        return [*block_table, *self.take(more)]
