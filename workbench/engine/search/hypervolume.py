"""How good a front is: the area between its points and a corner that is worse than all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Point = tuple[float, float]


def area(points: Iterable[Point], corner: Point) -> float:
    """Area that at least one point beats, up to ``corner``; smaller coordinates are better."""
    total, height = 0.0, corner[1]
    for x, y in sorted(points):
        if x < corner[0] and y < height:
            total += (corner[0] - x) * (height - y)
            height = y
    return total


def most_gain(
    candidates: Sequence[Point], points: Sequence[Point], corner: Point, count: int
) -> list[int]:
    """Indices of candidates that together add most to the area of ``points``, greedily."""
    known, chosen = list(points), list[int]()
    for _ in range(min(count, len(candidates))):
        base = area(known, corner)
        known = [p for p in known if p[0] < corner[0] and p[1] < corner[1]]
        gains = [area([*known, point], corner) - base for point in candidates]
        for index in chosen:
            gains[index] = -1.0
        best = max(range(len(gains)), key=gains.__getitem__)
        if gains[best] <= 0.0:
            break
        chosen.append(best)
        known.append(candidates[best])
    return chosen
