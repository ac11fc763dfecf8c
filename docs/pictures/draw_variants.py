"""Draws the pictures of docs/attention-variants.md: `python docs/pictures/draw_variants.py`.

Style and pieces are those of draw.py.
"""

import math
from pathlib import Path

from draw import arrow, box, rect, svg, text

N, CELL = 6, 22


def _grid(x: float, y: float, name: str, seen) -> str:  # type: ignore[no-untyped-def]
    """Queries downwards, keys to the right; filled where a query sees a key."""
    parts = [text(x + N * CELL / 2, y - 16, name)]
    for t in range(N):
        for s in range(N):
            cls = "blue" if seen(t, s) else "none"
            parts.append(rect(x + s * CELL, y + t * CELL, CELL, CELL, cls))
    return "".join(parts)


def masks() -> str:
    """Section 2: six queries, six keys."""
    start = (0, 0, 0, 3, 3, 5)
    grids = {
        "causal": lambda t, s: s <= t,
        "causal=False": lambda t, s: True,
        "window=2": lambda t, s: t - 2 < s <= t,
        "window=2, prefix=1": lambda t, s: t - 2 < s <= t or s < 1,
        "prefix=3": lambda t, s: s <= t or s < 3,
        "documents": lambda t, s: s <= t and start[s] == start[t],
        "+ causal=False": lambda t, s: start[s] == start[t],
        "lengths=4": lambda t, s: s <= t and s < 4,
    }
    parts = []
    for i, (name, seen) in enumerate(grids.items()):
        parts.append(_grid(40 + i % 4 * 200, 60 + i // 4 * 200, name, seen))
    parts += [text(106, 214, "keys s →", "small"), text(22, 126, "t↓", "small")]
    return svg(820, 420, *parts)


def _curve(f, x0: float, y0: float, sx: float, sy: float, cls: str) -> str:  # type: ignore[no-untyped-def]
    points = [(x0 + sx * i / 10, y0 - sy * f(i / 10)) for i in range(-40, 41)]
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="{path}" class="{cls}"/>'


def soft_cap() -> str:
    """Section 4: the capped score and its slope, for c = 1."""
    x0, y0, sx, sy = 330, 150, 70, 80
    parts = [
        arrow([(30, y0), (632, y0)], "kept"),
        arrow([(x0, 270), (x0, 30)], "kept"),
        _curve(math.tanh, x0, y0, sx, sy, "fwd"),
        _curve(lambda r: 1 - math.tanh(r) ** 2, x0, y0, sx, sy, "bwd"),
        f'<path d="M50 {y0 - sy} L610 {y0 - sy} M50 {y0 + sy} L610 {y0 + sy}" class="kept"/>',
        text(600, y0 - sy - 16, "c"),
        text(600, y0 + sy + 16, "−c"),
        text(630, y0 + 18, "r"),
        text(500, y0 - sy + 26, "a = c tanh(r/c)", "f"),
        text(140, y0 - 48, "∂a/∂r = 1 − tanh²(r/c)", "b"),
    ]
    return svg(660, 300, *parts)


def alibi() -> str:
    """Section 5: what is taken from a score, by distance, for three heads."""
    parts = [text(90, 24, "distance")]
    for i in range(8):
        parts.append(text(190 + i * 62, 24, str(7 - i), "small"))
    for row, slope in enumerate((0.5, 0.25, 0.0625)):
        y = 60 + row * 84
        parts.append(text(90, y + 26, f"slope {slope:g}"))
        for i in range(8):
            height = 14 * slope * (7 - i)
            parts.append(rect(168 + i * 62, y + 6, 44, height, "orange"))
            weight = 2.0 ** -(1.4427 * slope * (7 - i))
            parts.append(text(190 + i * 62, y + height + 20, f"×{weight:.2f}", "small"))
        parts.append(f'<path d="M150 {y + 6} L660 {y + 6}" class="kept"/>')
    return svg(690, 312, *parts)


def sink() -> str:
    """Section 6: the shares of a softmax without and with a sink."""
    parts = []
    for i, (name, shares) in enumerate(
        (
            ("softmax", (("0.75", 0.75, "blue"), ("0.25", 0.25, "blue"))),
            (
                "sink ln 4",
                (("0.375", 0.375, "blue"), ("0.125", 0.125, "blue"), ("0.5", 0.5, "none")),
            ),
            ("off by one", (("0.6", 0.6, "blue"), ("0.2", 0.2, "blue"), ("0.2", 0.2, "none"))),
        )
    ):
        y, x = 40 + 70 * i, 150.0
        parts.append(text(78, y + 20, name))
        for label, share, cls in shares:
            parts.append(rect(x, y, 480 * share, 42, cls))
            parts.append(text(x + 240 * share, y + 21, label, "f" if cls == "blue" else "small"))
            x += 480 * share
    parts.append(text(390, 20, "v₀, v₁, 0", "small"))
    return svg(660, 250, *parts)


def cross() -> str:
    """Section 7: where q, k and v of a decoder's cross-attention come from, and what flows back."""
    parts = [
        box(110, 60, "encoder", "(S, C)", "box", 130),
        box(110, 210, "decoder", "(T, C)", "box", 130),
        box(340, 60, "k, v", "(S, D)", "blue", 120),
        box(340, 210, "q", "(T, D)", "blue", 120),
        box(570, 135, "p", "(T, S)", "box", 120),
        box(780, 210, "y", "(T, D)", "blue", 120),
        arrow([(175, 52), (280, 52)]),
        arrow([(175, 202), (280, 202)]),
        arrow([(400, 66), (510, 116)]),
        arrow([(400, 204), (510, 156)]),
        arrow([(400, 44), (780, 44), (780, 186)]),
        arrow([(630, 130), (722, 186)]),
        arrow([(720, 204), (626, 146)], "bwd"),
        arrow([(510, 132), (398, 82)], "bwd"),
        arrow([(510, 140), (398, 188)], "bwd"),
        text(590, 28, "v", "f"),
        arrow([(280, 72), (175, 72)], "bwd"),
        arrow([(280, 222), (175, 222)], "bwd"),
        text(228, 92, "dk, dv", "b"),
        text(228, 242, "dq", "b"),
    ]
    return svg(880, 280, *parts)


def qk_norm() -> str:
    """Section 8: x goes to the circle; the gradient back has no part along x."""
    cx, cy, r = 150, 250, 141.4
    ux, uy = 0.14142, 0.98995
    parts = [
        f'<circle cx="{cx}" cy="{cy}" r="{r}" class="kept"/>',
        arrow([(cx, cy), (cx + 31 * ux * 7, cy - 31 * uy * 7)]),
        arrow([(cx, cy), (cx + r * ux, cy - r * uy)], "fwd"),
        text(cx + 56, cy - 222, "x"),
        text(cx + 62, cy - 128, "x̂ = x/rms", "f", "start"),
        arrow([(cx + 217 * ux, cy - 217 * uy), (cx + 217 * ux + 92, cy - 217 * uy + 13)], "bwd"),
        text(cx + 150, cy - 196, "dx ⊥ x", "b", "start"),
        text(cx, cy + 18, "0", "small"),
    ]
    return svg(420, 410, *parts)


def rope() -> str:
    """Section 9: a pair of channels turned forward, its gradient turned back; who pairs whom."""
    cx, cy, r = 130, 150, 90
    parts = [f'<circle cx="{cx}" cy="{cy}" r="{r}" class="kept"/>']
    for angle, cls, name in ((63.4, "fwd", "x"), (116.6, "fwd", "y")):
        x = cx + r * math.cos(math.radians(angle))
        y = cy - r * math.sin(math.radians(angle))
        parts += [arrow([(cx, cy), (x, y)], cls), text(x, y - 16, name, "f")]
    parts += [text(cx, cy - 58, "θ", "f"), text(cx, cy + 112, "+θ: y     −θ: dx", "b")]
    for row, (name, pairs) in enumerate(
        (
            ("half", ((0, 4), (1, 5), (2, 6), (3, 7))),
            ("adjacent", ((0, 1), (2, 3), (4, 5), (6, 7))),
        )
    ):
        y = 100 + 130 * row
        parts.append(text(330, y, name))
        for i in range(8):
            parts.append(rect(400 + 40 * i, y - 16, 32, 32, "blue"))
            parts.append(text(416 + 40 * i, y, str(i), "small"))
        for depth, (a, b) in enumerate(pairs):
            low = y - 24 - 9 * (depth + 1 if name == "half" else 1)
            xa, xb = 416 + 40 * a, 416 + 40 * b
            parts.append(f'<path d="M{xa} {y - 18} V{low} H{xb} V{y - 18}" class="bwd"/>')
    return svg(740, 280, *parts)


def tiles() -> str:
    """Section 11: tiles that are passed over, taken whole, and compared place by place."""
    cell, parts = 30, []
    start = [0] * 5 + [5] * 7
    for t in range(12):
        for s in range(12):
            seen = s <= t and start[s] == start[t]
            if seen:
                cx, cy = 60 + (s + 0.5) * cell, 50 + (t + 0.5) * cell
                parts.append(f'<circle cx="{cx:g}" cy="{cy:g}" r="3.5" class="dot"/>')
    back = []
    for i in range(4):
        for j in range(4):
            places = [(t, s) for t in range(3 * i, 3 * i + 3) for s in range(3 * j, 3 * j + 3)]
            sees = [s <= t and start[s] == start[t] for t, s in places]
            cls = "blue" if all(sees) else "half" if any(sees) else "none"
            back.append(rect(60 + 3 * j * cell, 50 + 3 * i * cell, 3 * cell, 3 * cell, cls))
    parts += [text(240, 26, "k, v (S)"), text(28, 230, "q (T)")]
    return svg(460, 440, *back, *parts)


PICTURES = {
    "attention-masks": masks,
    "soft-cap": soft_cap,
    "alibi": alibi,
    "sink": sink,
    "cross-attention": cross,
    "qk-norm": qk_norm,
    "rope": rope,
    "masked-tiles": tiles,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw(), "utf-8")
