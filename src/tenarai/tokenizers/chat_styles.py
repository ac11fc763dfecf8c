"""How conversations are written for models whose file has no usable template.

Told by the special tokens of the vocabulary. The templates are ours, in the form that each
family's model card describes.
"""

from __future__ import annotations

from collections.abc import Set

# A system message where a family has no place for one stands before the first question.
_SYSTEM_FIRST = (
    "{%- if messages and messages[0].role == 'system' -%}"
    "{%- set system, turns = messages[0].content | trim, messages[1:] -%}"
    "{%- else -%}{%- set system, turns = '', messages -%}{%- endif -%}"
)
_FRAMED = (  # every turn between the same two marks
    "{%- for message in messages -%}"
    "{{ OPEN + message.role + MIDDLE + TEXT + CLOSE }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ OPEN + 'assistant' + MIDDLE }}{%- endif -%}"
)


def _framed(opening: str, middle: str, closing: str, text: str = "message.content") -> str:
    marks = {"OPEN": opening, "MIDDLE": middle, "CLOSE": closing}
    template = _FRAMED.replace("TEXT", text)
    for name, mark in marks.items():
        template = template.replace(name, repr(mark))
    return template


STYLES = {
    "plain": "{%- for message in messages -%}{{ message.content + '\n' }}{%- endfor -%}",
    "chatml": _framed("<|im_start|>", "\n", "<|im_end|>\n"),
    "phi3": _framed("<|", "|>\n", "<|end|>\n"),
    "llama3": "{{- bos_token -}}"
    + _framed(
        "<|start_header_id|>",
        "<|end_header_id|>\n\n",
        "<|eot_id|>",
        "message.content | trim",
    ),
    "gemma": "{{- bos_token -}}" + _SYSTEM_FIRST + "{%- for message in turns -%}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{%- if loop.first and system -%}{{ system + '\n\n' }}{%- endif -%}"
    "{{ message.content | trim + '<end_of_turn>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}",
    "mistral": "{{- bos_token -}}" + _SYSTEM_FIRST + "{%- for message in turns -%}"
    "{%- if message.role == 'user' -%}"
    "{{ '[INST] ' + (system + '\n\n' if loop.first and system else '') + message.content"
    " + '[/INST]' }}"
    "{%- else -%}{{ ' ' + message.content | trim + eos_token }}{%- endif -%}"
    "{%- endfor -%}",
    "llama2": _SYSTEM_FIRST + "{%- for message in turns -%}"
    "{%- if message.role == 'user' -%}"
    "{{ bos_token + '[INST] ' }}"
    "{%- if loop.first and system -%}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{%- endif -%}"
    "{{ message.content | trim + ' [/INST]' }}"
    "{%- else -%}{{ ' ' + message.content | trim + ' ' + eos_token }}{%- endif -%}"
    "{%- endfor -%}",
}
_MARKS = (
    ("llama3", {"<|start_header_id|>", "<|eot_id|>"}),
    ("phi3", {"<|user|>", "<|assistant|>", "<|end|>"}),
    ("chatml", {"<|im_start|>", "<|im_end|>"}),
    ("gemma", {"<start_of_turn>", "<end_of_turn>"}),
    ("mistral", {"[INST]", "[/INST]"}),
    ("llama2", {"<s>", "</s>", "<0x00>"}),
)


def style_of(tokens: Set[str]) -> str | None:
    """The name in STYLES that a vocabulary speaks for: the first whose marks are all tokens."""
    return next((name for name, marks in _MARKS if marks <= tokens), None)
