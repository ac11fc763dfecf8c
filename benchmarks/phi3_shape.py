"""Writes a GGUF file of Phi-3-mini's shape with random weights, quantised as the published Q4_K_M.

    python benchmarks/phi3_shape.py phi3.gguf                      2.4 GB
    python benchmarks/phi3_shape.py small.gguf --layers 2 --width 256 --hidden 512 --heads 4 \\
        --window 64

Speed and memory of a model depend on its shape and formats, not on what its weights say, and the
real file cannot be had everywhere. Weights are normal, of the scale that keeps activations near 1
from layer to layer, so the logits are those of a working network. Each tensor is made, quantised
by `Fast.quantize`, and written by the `gguf` package. The tokenizer is Phi-3's where a file of its
vocabulary is given or found (../shared/data), else a made-up one of bytes and numbered pieces.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np
from tqdm import tqdm

from tenarai.io.gguf import read
from tenarai.ops.fast import Fast
from tenarai.quant import mixes

VOCABULARY = Path(__file__).parents[2] / "shared/data/gguf-vocab/ggml-vocab-phi-3.gguf"
ARCH = "phi3"
ROWS = 1 << 22  # weights made at a time


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("out", metavar="OUT")
    p.add_argument("--type", default="Q4_K_M", help="the mix (%(default)s)")
    p.add_argument("--layers", type=int, default=32)
    p.add_argument("--width", type=int, default=3072)
    p.add_argument("--hidden", type=int, default=8192)
    p.add_argument("--heads", type=int, default=32)
    p.add_argument("--vocabulary", type=int, default=32064, help="tokens (%(default)s)")
    p.add_argument("--context", type=int, default=4096)
    p.add_argument("--window", type=int, default=2047, help="0 for none (%(default)s)")
    p.add_argument("--vocab-file", type=Path, default=VOCABULARY, help="GGUF file of a tokenizer")
    p.add_argument("--seed", type=int, default=1)
    return p.parse_args()


def tensors(a: argparse.Namespace) -> dict[str, tuple[tuple[int, ...], float]]:
    """Name → shape, outermost first, and the weights' standard deviation (0: ones)."""
    C, F = a.width, a.hidden
    # Each of the 2L additions to the residual stream gets 1 / √(2L) of its own size.
    last = (2 * a.layers) ** -0.5
    found: dict[str, tuple[tuple[int, ...], float]] = {
        "token_embd.weight": ((a.vocabulary, C), 1.0)
    }
    for i in range(a.layers):
        layer = f"blk.{i}."
        found |= {
            layer + "attn_norm.weight": ((C,), 0),
            layer + "attn_qkv.weight": ((3 * C, C), C**-0.5),
            layer + "attn_output.weight": ((C, C), last * C**-0.5),
            layer + "ffn_norm.weight": ((C,), 0),
            layer + "ffn_up.weight": ((2 * F, C), C**-0.5),
            layer + "ffn_down.weight": ((C, F), 2 * last * F**-0.5),
        }
    return found | {
        "output_norm.weight": ((C,), 0),
        "output.weight": ((a.vocabulary, C), 2 * C**-0.5),
    }


def quantised(
    ops: Fast, rng: np.random.Generator, shape: tuple[int, ...], std: float, format
) -> np.ndarray:
    """The bytes of a random matrix, (rows, bytes a row) uint8."""
    rows, width = shape
    data = np.empty((rows, format.row_bytes(width)), np.uint8)
    step = max(1, ROWS // width)
    for i in range(0, rows, step):
        x = rng.standard_normal((min(step, rows - i), width), np.float32)
        x *= np.float32(std)
        data[i : i + step] = ops.quantize(x, format).data
    return data


def add_numbers(writer: gguf.GGUFWriter, a: argparse.Namespace, mix: mixes.Mix) -> None:
    writer.add_name(f"Phi-3-mini shape, {a.layers} layers, random weights")
    writer.add_context_length(a.context)
    writer.add_rope_scaling_orig_ctx_len(a.context)
    writer.add_embedding_length(a.width)
    writer.add_feed_forward_length(a.hidden)
    writer.add_block_count(a.layers)
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(a.width // a.heads)
    writer.add_rope_freq_base(10000.0)
    if a.window:
        writer.add_sliding_window(a.window)
    writer.add_file_type(mix.number)
    writer.add_quantization_version(2)


def add_tokenizer(writer: gguf.GGUFWriter, a: argparse.Namespace) -> None:
    """The file's keys where its vocabulary is large enough, cut to ours; else bytes and pieces."""
    file = read(a.vocab_file).metadata if a.vocab_file.is_file() else None
    if file is not None and file.length("tokenizer.ggml.tokens") == a.vocabulary:
        for key in (k for k in file if k.startswith("tokenizer.")):
            value, kind = file[key], file.types[key]
            if kind.startswith("["):
                writer.add_array(key, value if isinstance(value, list) else value.tolist())
            else:
                writer.add_key_value(key, value, gguf.GGUFValueType[kind.upper()])
        return
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    if a.vocabulary < len(pieces):
        sys.exit(f"--vocabulary {a.vocabulary}: at least {len(pieces)}, for each byte has its own")
    kinds = [2, 3, 3] + [6] * 256
    more = a.vocabulary - len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces + [f"\u2581piece{i}" for i in range(more)])
    writer.add_token_scores([-float(i) for i in range(a.vocabulary)])
    writer.add_token_types(kinds + [1] * more)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main() -> None:
    a = arguments()
    mix, place = mixes.mix_of(a.type), mixes.Place(a.layers)
    ops, rng = Fast(), np.random.default_rng(a.seed)
    temporary = Path(f"{a.out}.tmp")
    writer = gguf.GGUFWriter(temporary, ARCH)
    add_numbers(writer, a, mix)
    add_tokenizer(writer, a)
    todo = tensors(a)
    formats = {name: mixes.format_of(mix, name, shape, place) for name, (shape, _) in todo.items()}
    for name, (shape, _) in todo.items():
        size = formats[name].row_bytes(shape[-1]) * int(np.prod(shape[:-1]))
        number = gguf.GGMLQuantizationType(formats[name].number)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with tqdm(total=sum(int(np.prod(s)) for s, _ in todo.values()), unit_scale=True) as bar:
        for name, (shape, std) in todo.items():
            norm = np.ones(shape, np.float32) if not std else None
            made = quantised(ops, rng, shape, std, formats[name]) if norm is None else norm
            writer.write_tensor_data(made)
            bar.update(int(np.prod(shape)))
    writer.close()
    temporary.replace(a.out)
    print(f"{a.out}: {Path(a.out).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
