"""The numbers of a model of the Llama family, and what they must satisfy."""

from __future__ import annotations

from dataclasses import dataclass

from .rope import Rope

# The families of files that are one family here, by the names that GGUF and Hugging Face share.
ARCHITECTURES = (
    "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3moe", "gemma3",
)  # fmt: skip


@dataclass(frozen=True)
class LlamaConfig:
    """Raises ValueError, which names the number, for what cannot be computed."""

    vocab_size: int  # V
    context: int  # the largest T
    layers: int  # L
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # D
    width: int  # C
    hidden: int  # F, of an expert where there are several
    rope: Rope
    local_rope: Rope | None = None  # of layers with a window, where theirs is another
    arch: str = "llama"  # which kind of file it came from and goes to
    pairing: str = "half"  # of RoPE: as q and k lie ("adjacent" in GGUF files of arch llama)
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMS norm of each head's q and k
    norms_after: bool = False  # RMS norm of what a half adds to x
    gate: str = "silu"  # or "gelu": its tanh form
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # None: 1/√D
    windows: tuple[int | None, ...] = ()  # of each layer; () for none at all
    tied: bool = False  # the output is the embedding
    norm_eps: float = 1e-5
    experts: int = 0  # E, MLPs of which each token takes some; 0: one MLP for all
    experts_per_token: int = 2
    normalise_experts: bool = True  # the weights of a token's experts sum to 1
    shared_hidden: int = 0  # F of an MLP beside the experts; 0: none

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "context", "layers", "heads", "kv_heads", "head_size", "width", "hidden",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}")
        for rope in (self.rope, self.local_rope):
            if rope and rope.size > self.head_size:
                raise ValueError(f"RoPE turns {rope.size} channels of a head of {self.head_size}")
        if self.pairing not in ("half", "adjacent"):
            raise ValueError(f"pairing is {self.pairing!r}, expected 'half' or 'adjacent'")
        if self.pairing == "adjacent" and self.rope.size != self.head_size:
            raise ValueError(
                f"RoPE turns {self.rope.size} channels of a head of {self.head_size}: with pairing "
                "'adjacent' it must turn all"
            )
        if self.gate not in ("silu", "gelu"):
            raise ValueError(f"gate is {self.gate!r}, expected 'silu' or 'gelu'")
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch is {self.arch!r}, expected one of {', '.join(ARCHITECTURES)}")
        self._check_experts()
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"{len(self.windows)} windows for {self.layers} layers")
        if any(w is not None and w < 1 for w in self.windows):
            raise ValueError(f"windows are {self.windows}, expected 1 or more")

    def _check_experts(self) -> None:
        if self.experts < 0 or self.shared_hidden < 0:
            raise ValueError(f"{self.experts} experts, a shared one of {self.shared_hidden}")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, expected 1 to {self.experts}"
            )
        if self.experts and (self.norms_after or self.mlp_bias or self.gate != "silu"):
            raise ValueError("experts are MLPs with SwiGLU, without biases and norms after them")
        if self.shared_hidden and not self.experts:
            raise ValueError("a shared expert beside no experts: give it experts or leave it out")

    def window_of(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> Rope:
        local = self.local_rope if self.window_of(layer) is not None else None
        return local or self.rope
