"""How fast a program starts: what `tenarai run` may import, and short cuts that change nothing."""

import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest

from gguf_bytes import build, key, value
from tenarai.errors import TenaraiError
from tenarai.io import gguf
from tenarai.tokenizers import TokenizerError, from_gguf
from tiny import write_model
from token_cases import random_texts, small_vocabulary

# Each takes 5 ms or more, and completing a prompt needs none of them.
SLOW = ["concurrent.futures", "filelock", "jinja2", "llguidance", "psutil", "safetensors", "tqdm"]
SLOW += ["zipfile", "tenarai.models.exchange", "tenarai.ops.reference", "tenarai.train"]


def test_a_run_imports_nothing_slow_that_it_does_not_need(tmp_path):
    import tenarai

    path = tmp_path / "model.gguf"
    tenarai.load(write_model(tmp_path / "model.tenarai")).save(path)
    script = (
        "import sys; from tenarai.cli import main; from tenarai.api import load;"
        f"load({str(path)!r}).generate([1], 2, return_tokens=True);"
        "import tenarai.cli.run;"
        f"print([name for name in {SLOW} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_ctrl_c_while_the_program_is_imported():
    script = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from tenarai.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
    (program,) = entry_points(group="console_scripts", name="tenarai")
    assert program.value == "tenarai.__main__:main"


def strings(listed):
    data = build([key("a", value("[string]", listed)), key("b", value("uint8", 7))])
    file = gguf.parse(data)
    assert file.metadata["b"] == 7
    return file.metadata["a"]


@pytest.mark.parametrize(
    "listed",
    [
        [],
        [""],
        ["", "", ""],
        ["a", "", "猫" * 85, "b"],  # 255 bytes
        ["a", "x" * 256, "b"],
        ["a", "x" * 70_000],
        ["\0", "a\0", "\0b", "\0" * 8],
        ["a" * 128, "b" * 200],  # lengths that are no ASCII
    ],
)
def test_strings_of_every_length(listed):
    assert strings(listed) == listed


def test_a_string_that_is_no_utf8_is_told():
    data = build([key("a", value("[string]", [b"good", b"\xe7\x8c", b"x"]))])
    with pytest.raises(TenaraiError, match="a, string 1, is not UTF-8"):
        gguf.parse(data).metadata["a"]


@pytest.mark.parametrize("byte", range(1, 8))
def test_every_byte_of_a_length_counts(byte):
    listed = ["aa", "bb"]
    data = bytearray(build([key("a", value("[string]", listed))]))
    data[data.index(b"aa") - 8 + byte] = 1
    with pytest.raises(TenaraiError, match="string 0 of 2 goes beyond the file's end"):
        gguf.parse(bytes(data))


def tokenizer_of(tokens, merges):
    described = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": merges}
    return from_gguf({f"tokenizer.ggml.{name}": value for name, value in described.items()})


def test_merges_by_their_ids_and_by_a_table_are_the_same():
    tokens, merges = small_vocabulary()
    order = np.random.default_rng(5).permutation(len(tokens)).tolist()
    by_id = tokenizer_of(tokens, merges)
    by_table = tokenizer_of([tokens[i] for i in order], merges)
    assert (by_id._rank.__name__, by_table._rank.__name__) == ("rank", "<lambda>")
    for text in random_texts(50, seed=9):
        ids = by_id.encode(text)
        assert [order[i] for i in by_table.encode(text)] == ids, text
        assert by_id._library.encode(text).ids == ids


@pytest.mark.parametrize("merge", ["ab", "a b c", " a", "a ", "a  b", "a\nb", ""])
def test_a_merge_is_two_tokens(merge):
    tokens, merges = small_vocabulary()
    with pytest.raises(TokenizerError, match=f"merge {len(merges) + 1}, .* is not two tokens"):
        tokenizer_of(tokens, [*merges, merge])
