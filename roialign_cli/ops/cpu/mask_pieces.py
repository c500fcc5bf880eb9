"""Cut masks into disjoint trapezoids with horizontal bases: the union of polygons, and runs of pixels (Numba, `nogil`)."""

import numpy as np

from roialign_cli.ops.cpu.jit import inner, jit

MIN_ROWS = 64  # of results, which grow


@inner
def _grown(rows):
    """Return an array of rows with twice the space."""
    larger = np.empty((2 * len(rows), rows.shape[1]))
    larger[: len(rows)] = rows
    return larger


@jit
def rectangles_of_runs(counts, height):
    """Return the rectangles [T, 6] of run lengths over columns of `height` pixels, as COCO has them.

    A run that reaches over several columns is one rectangle per column; whole columns beside each other are one rectangle.
    """
    found, n, at = np.empty((MIN_ROWS, 6)), 0, 0
    for i in range(len(counts)):
        begin, at = at, at + np.int64(counts[i])
        if i % 2 == 0:
            continue
        while begin < at:
            column, low = begin // height, begin % height
            if low == 0 and at - begin >= height:
                columns, high = (at - begin) // height, height
            else:
                columns, high = 1, min(height, low + at - begin)
            if n == len(found):
                found = _grown(found)
            found[n, 0], found[n, 1] = low, high
            found[n, 2] = found[n, 4] = column
            found[n, 3] = found[n, 5] = column + columns
            n += 1
            begin += columns * height if high - low == height else high - low
    return found[:n].copy()


@inner
def _edges_of(polygons, part):
    """Return the edges [E, 6] of polygons, top first: y0, x0, y1, x1, whether they lead down (1) or up (-1), and the polygon.

    Polygons are (x, y) in turn; polygon j is polygons[part[j]:part[j + 1]].
    """
    edges, n = np.empty((len(polygons) // 2, 6)), 0
    for j in range(len(part) - 1):
        first, corners = part[j], (part[j + 1] - part[j]) // 2
        for i in range(corners):
            a, b = first + 2 * i, first + 2 * ((i + 1) % corners)
            if polygons[a + 1] == polygons[b + 1]:
                continue
            down = polygons[a + 1] < polygons[b + 1]
            top, bottom = (a, b) if down else (b, a)
            edges[n, 0], edges[n, 1] = polygons[top + 1], polygons[top]
            edges[n, 2], edges[n, 3] = polygons[bottom + 1], polygons[bottom]
            edges[n, 4], edges[n, 5] = 1.0 if down else -1.0, j
            n += 1
    return edges[:n]


@jit
def trapezoids_of_polygons(polygons, part):
    """Return the trapezoids [T, 6] of the union of polygons, see `_edges_of`.

    The plane is cut into horizontal strips at every corner and at every crossing of edges. In a strip no edges cross, and the
    union is where the winding number of some polygon is not zero.
    """
    edges = _edges_of(polygons, part)
    edges = edges[np.argsort(edges[:, 0], kind="mergesort")]
    n_edges = len(edges)
    levels = np.empty(2 * n_edges + MIN_ROWS)
    n_levels = 0
    for e in range(n_edges):
        if n_levels + 2 > levels.size:
            larger = np.empty(2 * levels.size)
            larger[:n_levels] = levels[:n_levels]
            levels = larger
        levels[n_levels], levels[n_levels + 1] = edges[e, 0], edges[e, 2]
        n_levels += 2
        for f in range(e + 1, n_edges):
            if edges[f, 0] >= edges[e, 2]:
                break
            if max(edges[e, 1], edges[e, 3]) < min(edges[f, 1], edges[f, 3]):
                continue
            if max(edges[f, 1], edges[f, 3]) < min(edges[e, 1], edges[e, 3]):
                continue
            low, high = max(edges[e, 0], edges[f, 0]), min(edges[e, 2], edges[f, 2])
            before, after = _x_at(edges, e, low) - _x_at(edges, f, low), _x_at(edges, e, high) - _x_at(edges, f, high)
            if (before < 0.0 < after) or (after < 0.0 < before):
                if n_levels + 2 > levels.size:
                    larger = np.empty(2 * levels.size)
                    larger[:n_levels] = levels[:n_levels]
                    levels = larger
                levels[n_levels] = low + (high - low) * before / (before - after)
                n_levels += 1
    levels = np.sort(levels[:n_levels])
    found, n = np.empty((MIN_ROWS, 6)), 0
    active, middle_x = np.empty(n_edges, np.int64), np.empty(n_edges)
    begin = 0  # no earlier edge reaches the strip
    winding = np.zeros(len(part), np.int64)
    for s in range(n_levels - 1):
        low, high = levels[s], levels[s + 1]
        middle = low + (high - low) / 2
        if not low < middle < high:
            continue
        while begin < n_edges and edges[begin, 2] <= low:
            begin += 1
        count = 0
        for e in range(begin, n_edges):
            if edges[e, 0] > low:
                break
            if edges[e, 2] >= high:
                x, place = _x_at(edges, e, middle), count
                while place > 0 and middle_x[place - 1] > x:
                    middle_x[place], active[place] = middle_x[place - 1], active[place - 1]
                    place -= 1
                middle_x[place], active[place] = x, e
                count += 1
        winding[:] = 0
        around, left = 0, 0  # polygons that go around the place right of edge e
        for i in range(count):
            e = active[i]
            polygon, before = int(edges[e, 5]), around
            around -= winding[polygon] != 0
            winding[polygon] += int(edges[e, 4])
            around += winding[polygon] != 0
            if before == 0:
                left = e
            elif around == 0:
                if n == len(found):
                    found = _grown(found)
                found[n, 0], found[n, 1] = low, high
                found[n, 2], found[n, 3] = _x_at(edges, left, low), _x_at(edges, e, low)
                found[n, 4], found[n, 5] = _x_at(edges, left, high), _x_at(edges, e, high)
                n += 1
    return found[:n].copy()


@inner
def _x_at(edges, e, y):
    """Return where an edge crosses a horizontal line."""
    y0, x0, y1, x1 = edges[e, 0], edges[e, 1], edges[e, 2], edges[e, 3]
    return x0 if x0 == x1 else x0 + (y - y0) / (y1 - y0) * (x1 - x0)
