"""Draws the pictures of docs/attention-linear.md: `python docs/pictures/draw_linear.py`.

In draw.py's hand: names, formulas and numbers alone, so that one picture serves every language.
"""

from pathlib import Path

from draw import arrow, box, rect, svg, text


def latent() -> str:
    """Section 2: c and k^R are kept (blue); keys and values of each head are made of them."""
    parts = [
        box(70, 175, "x", "(C)"),
        arrow([(124, 175), (150, 175), (150, 75), (286, 75)]),
        arrow([(150, 175), (150, 275), (286, 275)]),
        text(212, 57, "norm(Wₐ x)", "f"),
        text(212, 297, "rope(Wᵣ x)", "f"),
        rect(272, 36, 136, 278, "kept", 8),
        box(340, 75, "c", "R = 512", "blue"),
        box(340, 275, "kᴿ", "Dr = 64", "blue"),
    ]
    for i, h in enumerate("12H"):
        y = 75 + 100 * i
        parts += [
            arrow([(394, 75), (430, 75), (430, y - 12), (484, y - 12)]),
            arrow([(394, 275), (452, 275), (452, y + 14), (484, y + 14)]),
            box(574, y, f"k{h} = [W c ; kᴿ]", "128 + 64", w=178),
            box(754, y, f"v{h} = W c", "128", w=120),
            arrow([(430, y - 12), (430, y - 38), (754, y - 38), (754, y - 26)]),
        ]
    parts.append(text(574, 222, "⋮"))
    return svg(838, 350, *parts)


def linear_chunk() -> str:
    """Section 7: 12 tokens in chunks of 4. Dots are pairs; all to their left is one state."""
    x0, y0, cell, C = 70, 70, 26, 4
    parts = [text(x0 + 6 * cell, 26, "k, v (T)"), text(32, y0 + 6 * cell, "q (T)")]
    for n in range(3):
        x, y = x0 + n * C * cell, y0 + n * C * cell
        for i in range(C):
            for j in range(i + 1):
                cx, cy = x + (j + 0.5) * cell, y + (i + 0.5) * cell
                parts.append(f'<circle cx="{cx:g}" cy="{cy:g}" r="3.5" class="dot"/>')
        parts.append(rect(x, y, C * cell, C * cell, "none"))
        if n:
            parts.append(rect(x0, y, n * C * cell, C * cell, "half"))
            name = f"S{'₀₁₂'[n]}"
            parts.append(text(x0 + n * C * cell / 2, y + C * cell / 2, f"Q∘eᵇ {name}", "f"))
    sx, gap = x0 + 12 * cell + 90, C * cell
    for n in range(4):
        y = y0 + n * gap
        parts.append(box(sx, y, f"S{'₀₁₂₃'[n]}", "(D, Dv)", "blue", 96))
        if n < 3:
            parts.append(arrow([(sx, y + 24), (sx, y + gap - 26)]))
            parts.append(text(sx + 12, y + gap / 2, "+ kᵀv", "f", "start"))
            parts.append(arrow([(sx - 30, y + gap - 26), (sx - 30, y + 26)], "bwd"))
            parts.append(text(sx - 38, y + gap / 2, "dS", "b", "end"))
    return svg(sx + 90, y0 + 12 * cell + 44, *parts)


def delta_solve() -> str:
    """Section 10: (I + L) u = v of the example, solved downwards; its transpose upwards."""
    size, parts = 62, []

    def table(x: float, rows: list[list[str]], title: str, cls: str) -> None:
        parts.append(text(x + len(rows[0]) * size / 2, 30, title))
        for i, row in enumerate(rows):
            for j, s in enumerate(row):
                shade = "none" if s == "0" else cls
                parts.append(rect(x + j * size, 52 + i * size, size, size, shade))
                parts.append(text(x + (j + 0.5) * size, 52 + (i + 0.5) * size, s, "small"))

    rows = [["1", "0", "0"], ["0", "1", "0"], ["0.6", "0.8", "1"]]
    table(24, rows, "I + L", "blue")
    table(230, [["2"], ["4"], ["1.6"]], "u", "half")
    table(332, [["2"], ["4"], ["6"]], "v", "half")
    table(470, [list(row) for row in zip(*rows, strict=True)], "(I + L)ᵀ", "orange")
    table(676, [["0.16"], ["−0.12"], ["1.4"]], "z", "orange")
    table(778, [["1"], ["1"], ["1.4"]], "du", "orange")
    parts += [text(312, 145, "="), text(758, 145, "=")]
    parts += [arrow([(218, 60), (218, 232)]), arrow([(664, 232), (664, 60)], "bwd")]
    return svg(864, 262, *parts)


PICTURES = {"latent": latent, "linear-chunk": linear_chunk, "delta-solve": delta_solve}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw(), "utf-8")
