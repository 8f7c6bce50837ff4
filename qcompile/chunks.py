"""Work that is cut into pieces which fit into memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield the items in order, as many at once as stay within a limit; one that is larger, alone.

    Args:
        items: What is cut.
        size: Of one item.
        limit: Of the sizes together.
    """
    chunk: list[T] = []
    used = 0
    for item in items:
        need = size(item)
        if chunk and used + need > limit:
            yield chunk
            chunk, used = [], 0
        chunk.append(item)
        used += need
    if chunk:
        yield chunk
