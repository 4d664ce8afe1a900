"""Cut a long sequence into windows that overlap, and find the window in which each item has most context."""

import numpy as np


def window_bounds(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Return (start, stop) of windows that cover `length` items in order.

    size: most items in a window. stride: items that two neighbours share, as in tokenizers. The last window ends at
    the last item and may be shorter. No items give one empty window.

    Raises ValueError if the stride is not below the size.
    """
    if not 0 <= stride < size:
        raise ValueError(f"windows of {size} items cannot share {stride} of them")
    starts = range(0, max(1, length - stride), size - stride)
    return [(start, min(start + size, length)) for start in starts]


def best_window(length: int, bounds: list[tuple[int, int]]) -> np.ndarray:
    """Return the index of the window in which each item has most context, (length,).

    The context of an item is its distance to the nearer edge of its window; the edges of the sequence do not count,
    since nothing was cut there. Of two windows that are equally good, the first is taken.
    """
    best, most = np.zeros(length, dtype=np.int64), np.full(length, -1.0)
    for w, (start, stop) in enumerate(bounds):
        items = np.arange(start, stop)
        left = items - start if start else np.inf
        right = stop - 1 - items if stop < length else np.inf
        context = np.minimum(left, right)
        better = context > most[start:stop]
        best[start:stop][better], most[start:stop] = w, np.maximum(context, most[start:stop])
    return best
