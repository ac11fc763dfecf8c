"""Draws the pictures of docs/attention-backward.md: `python docs/pictures/draw.py`.

Each picture is a function that returns SVG. The text in them is names, formulas and numbers, so
that one picture serves every language. Blue is the forward, orange the backward, dashed what the
forward keeps. Each stands on a card of its own, light or dark as the reader's system is, so it
can be read on any page.
"""

import math
from pathlib import Path

STYLE = """
  .card { fill: #fbfaf7; stroke: #d9d6cd }
  .box { fill: #ffffff; stroke: #8a877e; stroke-width: 1.5 }
  text { fill: #23221e; font: 15px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace }
  .small { font-size: 13px; fill: #6a675f }
  .fwd { stroke: #1f6fb5; stroke-width: 2; fill: none } text.f { fill: #1a5f9c }
  .bwd { stroke: #c4560f; stroke-width: 2; fill: none } text.b { fill: #b04a08 }
  .kept { stroke: #8a877e; stroke-width: 1.5; stroke-dasharray: 4 4; fill: none }
  .fwdfill { fill: #1f6fb5 } .bwdfill { fill: #c4560f } .keptfill { fill: #8a877e }
  .blue { fill: #d6e6f5; stroke: #1f6fb5; stroke-width: 1.5 }
  .orange { fill: #fbe3d2; stroke: #c4560f; stroke-width: 1.5 }
  .half { fill: #eef4fa; stroke: #1f6fb5; stroke-width: 1.5 }
  .none { fill: none; stroke: #c9c6bd; stroke-width: 1 }
  .dot { fill: #1f6fb5 } .grid { stroke: #c9c6bd; stroke-width: 0.75; fill: none }
  @media (prefers-color-scheme: dark) {
    .card { fill: #191b1f; stroke: #3a3d44 }
    .box { fill: #24272d; stroke: #8b8f98 }
    text { fill: #e8e6e1 } .small { fill: #a5a8af }
    .fwd { stroke: #6cb2f0 } text.f { fill: #8cc4f5 } .fwdfill { fill: #6cb2f0 }
    .bwd { stroke: #f0965a } text.b { fill: #f5ab7b } .bwdfill { fill: #f0965a }
    .kept { stroke: #8b8f98 } .keptfill { fill: #8b8f98 }
    .blue { fill: #1d3a55; stroke: #6cb2f0 } .orange { fill: #52301a; stroke: #f0965a }
    .half { fill: #1c2833; stroke: #6cb2f0 } .none { stroke: #3f434b }
    .dot { fill: #6cb2f0 } .grid { stroke: #4a4e57 }
  }"""


def text(x: float, y: float, s: str, cls: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y + 5:g}" text-anchor="{anchor}" class="{cls}">{s}</text>'


def rect(x: float, y: float, w: float, h: float, cls: str = "box", r: float = 0) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}" class="{cls}"/>'


def box(x: float, y: float, s: str, shape: str = "", cls: str = "box", w: float = 108) -> str:
    """A name, and under it its shape, in a box of which (x, y) is the middle."""
    out = rect(x - w / 2, y - 24, w, 48, cls, 8)
    return out + (text(x, y - 8, s) + text(x, y + 11, shape, "small") if shape else text(x, y, s))


def arrow(points: list[tuple[float, float]], cls: str = "fwd", head: bool = True) -> str:
    """A line through the points, with its head at the last."""
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    bx, by = x1 - 9 * ux, y1 - 9 * uy
    line = [*points[:-1], (bx + 2 * ux, by + 2 * uy)] if head else points
    path = "M" + " L".join(f"{x:.4g} {y:.4g}" for x, y in line)
    out = f'<path d="{path}" class="{cls}"/>'
    if head:
        tip = f"{x1:.4g},{y1:.4g} {bx - 5 * uy:.4g},{by + 5 * ux:.4g} "
        out += f'<polygon points="{tip}{bx + 5 * uy:.4g},{by - 5 * ux:.4g}" class="{cls}fill"/>'
    return out


def svg(w: int, h: int, *parts: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}">'
        f"\n<style>{STYLE}\n</style>\n{rect(0.5, 0.5, w - 1, h - 1, 'card', 10)}\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def two_keys() -> str:
    """Section 2: each number of the scalar example above, its gradient below."""

    def node(x: float, y: float, name: str, value: str, grad: str) -> str:
        mark = rect(x - 42, y - 31, 84, 62, "box", 8)
        return (
            mark
            + text(x, y - 17, name, "small")
            + text(x, y + 1, value, "f")
            + text(x, y + 19, grad, "b")
        )

    cols = [(70, "k"), (250, "s"), (430, "p"), (610, "v")]
    nodes, arrows = [], []
    values = {
        "k": (("ln 3", "−1.5"), ("0", "1.5")),
        "s": (("ln 3", "−1.5"), ("0", "1.5")),
        "p": (("0.75", "8"), ("0.25", "16")),
        "v": (("4", "1.5"), ("8", "0.5")),
    }
    for x, name in cols:
        for i, y in enumerate((60, 240)):
            nodes.append(node(x, y, f"{name}{i}", *values[name][i]))
    nodes += [node(70, 150, "q", "1", "−1.648"), node(610, 150, "y", "5", "2")]
    for y in (60, 240):
        arrows += [arrow([(112, y), (208, y)]), arrow([(112, 150), (208, y)])]
        arrows.append(arrow([(472, y), (568, 150)]))
        arrows.append(arrow([(610, 91 if y == 60 else 209), (610, 119 if y == 60 else 181)]))
        for other in (60, 240):
            arrows.append(arrow([(292, y), (388, other)]))
    return svg(680, 300, *arrows, *nodes)


def softmax_jacobian() -> str:
    """Section 4: diag(p) − p pᵀ = J for p = (0.5, 0.25, 0.25)."""
    p = (0.5, 0.25, 0.25)
    size, parts = 62, []

    def table(x: float, entry, title: str) -> None:  # type: ignore[no-untyped-def]
        parts.append(text(x + 1.5 * size, 30, title))
        for i in range(3):
            for j in range(3):
                value = entry(i, j)
                cls = "none" if value == 0 else "blue" if value > 0 else "orange"
                parts.append(rect(x + j * size, 52 + i * size, size, size, cls))
                label = f"{value:g}".replace("-", "−")
                parts.append(text(x + (j + 0.5) * size, 52 + (i + 0.5) * size, label, "small"))

    table(24, lambda i, j: p[i] if i == j else 0, "diag(p)")
    table(264, lambda i, j: p[i] * p[j], "p pᵀ")
    table(504, lambda i, j: (p[i] if i == j else 0) - p[i] * p[j], "J")
    parts += [text(237, 145, "−"), text(477, 145, "=")]
    return svg(714, 262, *parts)


def attention_flow() -> str:
    """Section 5: forward above, backward below, what is kept between them."""
    f, b, low, xs = 120, 330, 410, {"q": 90, "scores": 340, "p": 590, "y": 840}
    parts = [
        arrow([(144, f), (286, f)]),
        arrow([(394, f), (536, f)]),
        arrow([(644, f), (786, f)]),
        arrow([(90, 40), (340, 40), (340, 96)]),
        arrow([(590, 40), (840, 40), (840, 96)]),
        # backward, from the right to the left
        arrow([(786, b), (644, b)], "bwd"),
        arrow([(536, b), (394, b)], "bwd"),
        arrow([(286, b), (144, b)], "bwd"),
        arrow([(840, 354), (840, low), (644, low)], "bwd"),
        arrow([(340, 354), (340, low), (144, low)], "bwd"),
        # kept: k for dq, q for dk, v for dp, p for dscores and for dv
        arrow([(164, 40), (164, b - 3)], "kept"),
        arrow([(90, 144), (90, 215), (272, 215), (272, low - 3)], "kept"),
        arrow([(766, 40), (766, b - 3)], "kept"),
        arrow([(590, 144), (590, 215), (465, 215), (465, b - 3)], "kept"),
        arrow([(590, 215), (664, 215), (664, low - 3)], "kept"),
    ]
    for name, x in xs.items():
        shape = "(T, S)" if name in ("scores", "p") else "(T, D)"
        parts += [box(x, f, name, shape), box(x, b, "d" + name, shape, "orange")]
    for x, name in ((90, "k"), (590, "v")):
        parts.append(box(x, 40, name, "(S, D)"))
        parts.append(box(x, low, "d" + name, "(S, D)", "orange"))
    labels = [(215, f + 18, "q kᵀ"), (465, f - 16, "softmax"), (715, f + 18, "p v")]
    parts += [text(x, y, s, "f") for x, y, s in labels]
    labels = [(715, b - 16, "dy vᵀ"), (742, low + 18, "pᵀ dy"), (465, b + 38, "p∘(dp−Σp∘dp)")]
    labels += [(218, b - 16, "dscores k"), (242, low + 18, "dscoresᵀ q")]
    parts += [text(x, y, s, "b") for x, y, s in labels]
    return svg(930, 452, *parts)


def grouped_query() -> str:
    """Section 10: k, v go out to the heads of the group, dk, dv come back summed."""
    parts = []
    for g in range(2):
        x = 195 + 390 * g
        for side in (-1, 1):
            xq = x + 95 * side
            parts.append(arrow([(x + side * 20, 66), (xq - side * 22, 166)]))
            parts.append(arrow([(xq + side * 14, 166), (x + side * 56, 66)], "bwd"))
            parts.append(text(x + side * 126, 114, "dk, dv", "b"))
            parts.append(box(xq, 190, f"q[{2 * g + (side > 0)}]", "(T, D)"))
        parts.append(box(x, 42, f"k[{g}], v[{g}]", "(S, D)", "blue", 140))
        parts.append(text(x, 124, "k, v", "f"))
        parts += [text(x + side * 84, 42, "+", "b") for side in (-1, 1)]
    return svg(780, 236, *parts)


def online_softmax() -> str:
    """Section 13: the state after each of two tiles."""
    parts = [arrow([(172, 82), (338, 82)]), arrow([(492, 82), (658, 82)])]

    def rows(x: float, y: float, *lines: str) -> None:
        parts.extend(text(x, y + 25 * i, line, anchor="start") for i, line in enumerate(lines))

    for x, s, w, v in (
        (255, "1, 0", "1, 0.5", "(4,0) (0,2)"),
        (575, "2, 0", "1, 0.25", "(2,4) (8,0)"),
    ):
        parts += [rect(x - 82, 184, 164, 92, "box", 8), arrow([(x, 184), (x, 86)])]
        rows(x - 70, 206, f"s: {s}", f"w: {w}", f"v: {v}")
    for x, m, l, acc in (
        (90, "−∞", "0", "(0, 0)"),
        (415, "1", "1.5", "(4, 1)"),
        (735, "2", "2", "(6, 4.5)"),
    ):
        parts.append(rect(x - 77, 36, 154, 92, "blue", 8))
        rows(x - 66, 58, f"m = {m}", f"l = {l}", f"acc = {acc}")
    parts += [text(255, 62, "× 0", "b"), text(575, 62, "× 2¹⁻² = ½", "b")]
    rows(676, 210, "y = acc / l", "&#160; = (3, 2.25)")
    parts.append(arrow([(735, 128), (735, 190)]))
    return svg(826, 300, *parts)


def tile_backward() -> str:
    """Section 14: what one pair of tiles reads, makes again, and adds to."""
    parts = [
        arrow([(164, 60), (238, 60)]),
        arrow([(100, 130), (100, 108), (300, 108), (300, 87)]),
        arrow([(164, 320), (238, 320)]),
        arrow([(100, 248), (100, 272), (300, 272), (300, 293)]),
        arrow([(362, 60), (478, 60)]),
        arrow([(362, 320), (540, 320), (540, 217)]),
        arrow([(540, 84), (540, 163)]),
        arrow([(602, 60), (716, 60)], "bwd"),
        arrow([(604, 180), (716, 180)], "bwd"),
        arrow([(604, 202), (650, 202), (650, 320), (716, 320)], "bwd"),
        text(420, 38, "e^(·−lseₜ)", "f"),
        text(444, 340, "− deltaₜ", "f"),
        text(560, 124, "p", "f"),
        text(659, 38, "pᵀ dyₜ", "b"),
        text(656, 158, "dscoresᵀ qₜ", "b"),
        text(652, 344, "dscores kₛ", "b"),
        box(100, 60, "qₜ, lseₜ", "", "blue", 128),
        box(100, 156, "kₛ", "", "blue", 128),
        box(100, 224, "vₛ", "", "blue", 128),
        box(100, 320, "dyₜ, deltaₜ", "", "blue", 128),
        box(300, 60, "scores", "qₜ kₛᵀ", w=124),
        box(300, 320, "dp", "dyₜ vₛᵀ", w=124),
        box(540, 60, "p", "", w=124),
        box(540, 190, "dscores", "p∘(dp−deltaₜ)", w=128),
        box(780, 60, "dvₛ +=", "", "orange", 128),
        box(780, 180, "dkₛ +=", "", "orange", 128),
        box(780, 320, "dqₜ +=", "", "orange", 128),
    ]
    return svg(868, 374, *parts)


def causal_tiles() -> str:
    """Section 14: 8 queries, 8 keys, tiles of 2; numbers give the order of the visits."""
    x0, y0, cell = 90, 70, 36
    parts, visit = [], 0
    for s in range(4):
        for t in range(4):
            x, y = x0 + 2 * s * cell, y0 + 2 * t * cell
            if t < s:
                parts.append(rect(x, y, 2 * cell, 2 * cell, "none"))
                continue
            visit += 1
            parts.append(rect(x, y, 2 * cell, 2 * cell, "blue" if t > s else "half"))
            for i in range(2):
                for j in range(2):
                    if 2 * s + j <= 2 * t + i:
                        cx, cy = x + (j + 0.5) * cell, y + (i + 0.5) * cell
                        parts.append(f'<circle cx="{cx:g}" cy="{cy:g}" r="3.5" class="dot"/>')
            parts.append(text(x + cell, y + cell, str(visit), "b"))
    end_x, end_y = x0 + 8 * cell, y0 + 8 * cell
    parts += [text(x0 + 4 * cell, 20, "k, v (S)"), text(34, y0 + 4 * cell, "q (T)")]
    parts += [arrow([(x0, 44), (end_x, 44)], "bwd"), arrow([(66, y0), (66, end_y)], "bwd")]
    return svg(x0 + 8 * cell + 40, y0 + 8 * cell + 30, *parts)


PICTURES = {
    "two-keys": two_keys,
    "softmax-jacobian": softmax_jacobian,
    "attention-flow": attention_flow,
    "grouped-query": grouped_query,
    "online-softmax": online_softmax,
    "tile-backward": tile_backward,
    "causal-tiles": causal_tiles,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw(), "utf-8")
