"""The pages that people read: their code runs and prints what they say, their links lead on."""

import importlib
import re
from pathlib import Path

import pytest

from doc_pages import ROOT, blocks, broken_links, pages, run, same_code, sums

PAGES = pages()
TWINS = [p for p in PAGES if p.name.endswith(".ja.md")]
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def english(page: Path) -> Path:
    return page.with_name(page.name.removesuffix(".ja.md") + ".md")


def check_code(page: Path) -> None:
    for block, printed in run(page):
        where = f"{page.name}, line {block.line}"
        assert not printed or block.output, (
            f"{where}: prints, but no text block follows:\n{printed}"
        )
        if block.output:
            assert printed == block.output.text, f"{where}: prints other than what stands below it"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_prints_what_the_page_says(page: Path) -> None:
    check_code(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_is_not_wider_than_the_projects(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        if block.lang == "python":
            for i, line in enumerate(block.text.splitlines(), block.line + 1):
                assert len(line) <= 100, f"{name(page)}, line {i}: {len(line)} characters"


def check_sums(page: Path) -> None:
    for left, right, true in sums(page.read_text("utf-8")):
        assert true, f"{page.name} says {left} = {right}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_sums_in_the_text_are_right(page: Path) -> None:
    check_sums(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_exist(page: Path) -> None:
    assert not broken_links(page)


@pytest.mark.parametrize("page", TWINS, ids=name)
def test_both_languages_have_the_same_code_and_numbers(page: Path) -> None:
    ja_text, en_text = (p.read_text("utf-8") for p in (page, english(page)))
    assert sorted(sums(ja_text)) == sorted(sums(en_text))
    ja, en = blocks(ja_text), blocks(en_text)
    assert [b.lang for b in ja] == [b.lang for b in en]
    for mine, theirs in zip(ja, en, strict=True):
        where = f"{name(page)}, line {mine.line}, and line {theirs.line} in English"
        if mine.lang == "python":
            assert same_code(mine.text) == same_code(theirs.text), where
        else:
            assert NUMBER.findall(mine.text) == NUMBER.findall(theirs.text), where


def test_the_attention_pages_stand_in_both_languages() -> None:
    for page, programs, claims in (("attention-backward", 10, 40), ("attention-linear", 6, 30)):
        for path in (ROOT / "docs" / f"{page}.md", ROOT / "docs" / f"{page}.ja.md"):
            text = path.read_text("utf-8")
            assert path in PAGES
            assert sum(b.runs and b.output is not None for b in blocks(text)) > programs
            assert len(sums(text)) > claims


@pytest.mark.parametrize("name", ["draw", "draw_linear", "draw_variants"])
def test_pictures_are_what_their_script_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "docs" / "pictures"
    monkeypatch.syspath_prepend(folder)
    draw = importlib.import_module(name)
    for picture, make in draw.PICTURES.items():
        assert (folder / f"{picture}.svg").read_text("utf-8") == make(), (
            f"{picture}.svg is not what {name}.py draws: run python docs/pictures/{name}.py"
        )


# The checks themselves: each must fail on a page that is wrong.

PAGE = """# Title one

```python
x = 1 + 1
assert x == 2  # holds
print("x =", x)
```

```text
x = 2
```

[up](#title-one) [self](page.md#title-one) [web](https://example.org/nowhere) `[code](gone)`
![picture](picture.svg)

[named]: page.md

<!-- not run: it would take an hour -->
```python
raise SystemExit
```
"""


SUMS = """By hand, 0.5·(4, 0) + ½·(0, 2) = (2, 1). So y = 2·3 + 1 = 7, and x[0]·2 = 5.

```
w = 2^0, 2^−1 = 1, 0.5        u = 1/3 = 0.333        ds = −1.5·ln 3 = −1.6479
```

合計は、2 + 3 = 5 です(−2 + 1 = −1)。
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "picture.svg").write_text("<svg/>")
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def test_a_right_page_passes(page: Path) -> None:
    check_code(page)
    assert broken_links(page, page.parent) == []


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("x = 2\n```\n\n[up]", "x = 3\n```\n\n[up]"),  # another digit in the output
        ("x = 2\n```\n\n[up]", "x = 2\ny = 3\n```\n\n[up]"),  # a line too many
        ("```text\nx = 2\n```\n", ""),  # output that the page does not show
        ("assert x == 2", "assert x == 3"),  # a wrong claim
        ("x = 1 + 1", "x = 1 +"),  # not Python
        ("raise SystemExit\n```", "raise SystemExit"),  # a block that never ends
        ("<!-- not run: it would take an hour -->", ""),
    ],
)
def test_a_wrong_page_fails(page: Path, right: str, wrong: str) -> None:
    assert PAGE.count(right) == 1
    page.write_text(PAGE.replace(right, wrong))
    with pytest.raises((AssertionError, SyntaxError, ValueError, SystemExit)):
        check_code(page)


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("(#title-one)", "(#title-two)"),
        ("page.md#title-one", "page.md#title"),
        ("(picture.svg)", "(pictures.svg)"),
        ("]: page.md", "]: pages.md"),
        ("(picture.svg)", "(../page.md)"),  # out of the project
        ("![picture](picture.svg)", '<img src="picture.png">'),
    ],
)
def test_a_broken_link_is_found(page: Path, right: str, wrong: str) -> None:
    assert PAGE.count(right) == 1
    page.write_text(PAGE.replace(right, wrong))
    assert len(broken_links(page, page.parent)) == 1


@pytest.mark.parametrize(
    "right, wrong",
    [("(2, 1)", "(2, 2)"), ("½", "½·1.01"), ("= 7", "= 8"), ("1, 0.5", "1, 0.25"), ("333", "334")]
    + [("6479", "6480"), ("2 + 3", "2 + 4"), ("−2 + 1", "−3 + 1"), ("2·3", "2·4")],
)
def test_a_wrong_sum_is_found(page: Path, right: str, wrong: str) -> None:
    page.write_text(SUMS, "utf-8")
    assert len(sums(SUMS)) == 7
    check_sums(page)
    assert SUMS.count(right) == 1
    page.write_text(SUMS.replace(right, wrong), "utf-8")
    with pytest.raises(AssertionError, match="page.md says"):
        check_sums(page)


def test_comments_and_docstrings_may_differ_between_languages_but_code_may_not() -> None:
    code = 'def f(x):\n    """Twice x."""\n    return 2 * x  # fast\n'
    assert same_code(code) == same_code(
        code.replace("Twice x", "x の 2 倍").replace("fast", "速い")
    )
    assert same_code(code) != same_code(code.replace("2 * x", "3 * x"))
