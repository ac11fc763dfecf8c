"""Remakes tokens.json: what llama.cpp makes of some texts, with real vocabularies and small ones.

    python tests/goldens/make_tokens.py          # needs llama-cpp-python, gguf, and both models
                                                 # in the cache: tenarai pull smollm2, gemma3-270m

The small vocabularies are byte-level BPE, one for each name of `tokenizer.ggml.pre` that is known
here, trained on a few lines; they show where each name cuts words.
"""

import json
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tenarai.io.named_models import model_path  # noqa: E402
from tenarai.tokenizers.pre_tokenizers import KINDS  # noqa: E402
from token_cases import GOLDEN_TEXTS, small_vocabulary  # noqa: E402

MODELS = ("smollm2", "gemma3-270m")


def write_small(path: Path, pre: str) -> None:
    tokens, merges = small_vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def encoded(path: Path, texts: list[str]) -> list[list[int]]:
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(t.encode(), add_bos=False, special=False) for t in texts]


def main() -> None:
    goldens = {}
    for name in MODELS:
        path = model_path(name)
        goldens[name] = encoded(path, GOLDEN_TEXTS)
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        special = "<|im_start|>user\nHello<|im_end|>\n<start_of_turn>model\n  Hi<end_of_turn>\n"
        goldens[name + " special"] = model.tokenize(special.encode(), add_bos=False, special=True)
    with tempfile.TemporaryDirectory() as folder:
        for pre in sorted(KINDS):
            path = Path(folder) / f"{pre}.gguf"
            write_small(path, pre)
            try:
                goldens["pre " + pre] = encoded(path, GOLDEN_TEXTS)
            except ValueError:
                print(f"llama.cpp does not know the name {pre}", file=sys.stderr)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in goldens.items()]
    (HERE / "tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
