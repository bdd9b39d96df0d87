"""Masks in the forms that labelling tools take: outlines of pixels, and COCO's run lengths."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .boxes import connected_pieces

Ring = list[tuple[int, int]]  # corners (x, y) between pixels; the last is joined to the first


class Outline(NamedTuple):
    """One piece of a mask: its border, and the borders of its holes."""

    outer: Ring
    holes: list[Ring]


def outlines(mask: NDArray[np.bool_]) -> list[Outline]:
    """Exact outlines of a mask [h, w], along the sides of its pixels, in reading order.

    Pixels that touch at a side belong together, those that touch at a corner do not. Outer rings
    run clockwise as one sees them (y goes down), holes the other way; no ring crosses itself.
    """
    pieces = connected_pieces(mask, corners=False)
    by_piece: dict[int, Outline] = {}
    holes: list[tuple[int, Ring]] = []
    for ring in _rings(mask):
        (x, y), (to_x, to_y) = ring[0], ring[1]
        # The mask lies to the right of every side.
        column = x - 1 if to_y > y else min(x, to_x)
        row = y - 1 if to_x < x else min(y, to_y)
        piece = int(pieces[row, column])
        if _area(ring) > 0:
            by_piece[piece] = Outline(ring, [])
        else:
            holes.append((piece, ring))
    for piece, ring in holes:
        by_piece[piece].holes.append(ring)
    return [by_piece[piece] for piece in sorted(by_piece)]


def one_ring(outline: Outline) -> Ring:
    """An outline as one ring: each hole is reached from the border over a cut without width."""
    ring = list(outline.outer)
    for hole in outline.holes:
        distances = np.abs(np.array(ring)[:, None] - np.array(hole)[None]).sum(axis=-1)
        start, end = divmod(int(distances.argmin()), len(hole))
        ring[start:start] = [ring[start], *hole[end:], *hole[: end + 1]]
    return ring


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs down the columns of a mask [h, w], of zeros and ones in turn, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = [*changes.tolist(), mask.size]
    if len(changes) and changes[-1] == mask.size:
        ends.pop()
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def coco_rle(mask: NDArray[np.bool_]) -> dict[str, object]:
    """COCO's compressed run-length encoding: {"size": [h, w], "counts": text}.

    From the third count on the difference to the one before the last is stored; each number in
    groups of five bits, the lowest first, a sixth bit for "more follows", as letters from "0" on.
    """
    counts = run_lengths(mask)
    letters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(bits + 48 + 32 * more))
    return {"size": list(mask.shape), "counts": "".join(letters)}


def _rings(mask: NDArray[np.bool_]) -> list[Ring]:
    """Closed borders, each a list of its corners."""
    padded = np.pad(mask, 1).astype(np.int8)
    turns: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # from, directions
    for y, x in zip(*np.nonzero(np.diff(padded, axis=0)), strict=True):
        below = padded[y + 1, x]  # the mask begins here: to the right, else to the left
        turns[(int(x) - 1 if below else int(x), int(y))].append((1, 0) if below else (-1, 0))
    for y, x in zip(*np.nonzero(np.diff(padded, axis=1)), strict=True):
        right = padded[y, x + 1]
        turns[(int(x), int(y) if right else int(y) - 1)].append((0, -1) if right else (0, 1))
    rings = []
    for start in sorted(turns, key=lambda place: (place[1], place[0])):
        if start not in turns:  # part of a ring already
            continue
        x, y = start
        ring: Ring = []
        step = (0, 0)
        while (x, y) in turns:
            ways = turns[(x, y)]
            # Where two pixels touch at a corner, turn right: back along the same pixel.
            way = ways[0] if len(ways) == 1 else next(w for w in ways if w != (step[1], -step[0]))
            ways.remove(way)
            if not ways:
                del turns[(x, y)]
            if way != step:
                ring.append((x, y))
            step = way
            x, y = x + step[0], y + step[1]
        rings.append(ring)
    return rings


def _area(ring: Ring) -> int:
    """Twice the area inside, above 0 for a ring that runs clockwise with y down."""
    pairs = zip(ring, [*ring[1:], ring[0]], strict=True)
    return sum(x * other_y - other_x * y for (x, y), (other_x, other_y) in pairs)
