"""Chat templates: what stands around the words of a conversation, per family of chat models.

Owns the literal pieces and nothing else: a template is five short lists of pieces, each a special token's name or plain text. mmcore.chat.chat
turns them into ids. A template keeps user text from forging a turn only where its marks are special tokens (chatml, llama3); the marks of the
others are plain words, as those models were trained.
"""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM = "{system}"
"""Piece that means the words of the system."""
BOS, EOS = "{bos}", "{eos}"
"""Pieces that mean the tokenizer's own first and end token; a tokenizer without a first token leaves it out."""
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """Pieces in the order of a conversation: begin, words, assistant, answer, end, after, user, words, assistant, ..."""

    begin: tuple[str, ...]
    """From the start of a conversation to the first words of its user."""
    user: tuple[str, ...]
    """Before the words of each later user turn."""
    assistant: tuple[str, ...]
    """Between a user's words and the first token of the answer."""
    end: str
    """Token that ends an answer; the model learns to emit it."""
    after: tuple[str, ...] = ()
    """Between the end token and the next user turn; never a target."""
    space: str = ""
    """Stands before words that begin a turn (not before media or signal tokens in an answer)."""
    system: tuple[str, ...] = ()
    """From the start of a conversation to the first words of its user where the system speaks first. Empty: the system has no turn."""
    marks: tuple[str, ...] = ()
    """Pieces that are special tokens by these names."""


CHAT_TEMPLATES = {
    # SmolLM2, Qwen2 and Qwen3 without their default system turn
    "chatml": ChatTemplate(
        begin=("<|im_start|>", "user\n"),
        user=("<|im_start|>", "user\n"),
        assistant=("<|im_end|>", "\n", "<|im_start|>", "assistant\n"),
        end="<|im_end|>",
        after=("\n",),
        system=("<|im_start|>", "system\n", SYSTEM, "<|im_end|>", "\n", "<|im_start|>", "user\n"),
        marks=("<|im_start|>", "<|im_end|>"),
    ),
    # Vicuna v1.1 and v1.5, LLaVA-1.5 and the public NExT-GPT code (template `v1`; facts: LLaVA conversation.py)
    "vicuna_v1": ChatTemplate(begin=(BOS, f"{_VICUNA} USER:"), user=("USER:",), assistant=(" ASSISTANT:",), end=EOS, space=" ", system=(BOS, SYSTEM, " USER:")),
    # Llama 3 instruct, without a default system turn
    "llama3": ChatTemplate(
        begin=("<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"),
        user=("<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"),
        assistant=("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
        end="<|eot_id|>",
        system=(
            *("<|begin_of_text|>", "<|start_header_id|>", "system", "<|end_header_id|>", "\n\n", SYSTEM, "<|eot_id|>"),
            *("<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"),
        ),
        marks=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # Vicuna v0 and the public NExT-GPT checkpoint; they end an answer with the words ###, which no tokenizer has as one token: the end token here
    "vicuna_v0": ChatTemplate(begin=(BOS, "### Human:"), user=("### Human:",), assistant=("\n### Assistant:",), end=EOS, after=("\n",), space=" "),
    # base models without a chat template of their own (OPT, Llama, GPT-2)
    "plain": ChatTemplate(begin=(BOS, "Question:"), user=("Question:",), assistant=("\nAnswer:",), end=EOS, after=("\n",), space=" "),
}
"""Name in a recipe -> template."""


def chat_template(name: str) -> ChatTemplate:
    """A template by name. Raises ValueError for an unknown one."""
    if name not in CHAT_TEMPLATES:
        raise ValueError(f"chat template {name!r} is unknown; there are: {', '.join(CHAT_TEMPLATES)}")
    return CHAT_TEMPLATES[name]
