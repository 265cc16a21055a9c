"""anyloom generate and chat: talk to an exported model from the terminal; media in by path, media out as files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.running.answer import Answer
from flows.running.cells import visible
from infra.artifact import find, refuse_damaged
from infra.settings import load_settings, offline_environment
from infra.step import AnyloomError

if TYPE_CHECKING:
    import torch

    from mmcore.inference.next_token import Sampling
    from mmcore.types import Event

Media = list[tuple[str, bytes]]
MEANT = {"image": "image (PNG, JPEG, WebP, GIF …)", "video": "video (MP4, WebM …)", "audio": "audio (WAV, OGG, FLAC, MP3 …)"}
CHAT_HELP = """commands:
  /image FILE, /video FILE, /audio FILE   show this with the next question
  /new                                    forget everything said so far
  /help                                   this list
an empty line, /quit or Ctrl-D ends"""


def add_ask(commands: Any) -> None:
    """Add `generate` and `chat` to a subparsers action."""
    generate = commands.add_parser("generate", help="ask an exported model; the answer streams, media are written as files")
    chat = commands.add_parser(
        "chat", help="a conversation with an exported model, media in and out", epilog=CHAT_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for sub in (generate, chat):
        sub.add_argument("--model", type=Path, required=True, help="an exported directory, or a root (its newest export)")
        sub.add_argument("--base", type=Path, metavar="DIR", help="weights of the language model, for a model that was packed without them")
        for modality in ("image", "video", "audio"):
            sub.add_argument(f"--{modality}", type=Path, action="append", default=[], help=f"{modality} file, shown with the first question; may be repeated")
        sub.add_argument(
            "--system", default="", metavar="TEXT", help="what the system says before the first question, where the chat template has a place for it"
        )
        sub.add_argument("--max-new-tokens", type=int, default=48)
        sub.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; may be repeated")
        sub.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token (default); above: draw, 1 as the model is unsure")
        sub.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest tokens only (default: all)")
        sub.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest tokens that have this probability together (default: 1)")
        sub.add_argument(
            "--no-complete-blocks",
            dest="complete_blocks",
            action="store_false",
            help="do not complete a block of signal tokens that the model begins: what it does not write whole by itself is named, and no medium is made of it",
        )
        sub.add_argument("--out", type=Path, default=Path("media"), metavar="DIR", help="where media that the model makes go (default: media)")
        sub.add_argument("--seed", type=int, default=0, help="draws words and media (default: 0); each further medium takes the next one")
        sub.add_argument("--save-conditioning", type=Path, metavar="FILE", help="write what the signal tokens say (safetensors)")
    generate.add_argument("prompt", help="the question; where media are shown, <image>, <video>, <audio> in it say where they stand")


def add_pack(commands: Any) -> None:
    """Add `pack` to a subparsers action."""
    command = commands.add_parser(
        "pack",
        help="an exported model as a directory to take away",
        description="Write an exported model as one directory: anyloom.json, tensors and projectors (safetensors), LoRA adapters (PEFT), tokenizer, encoders, "
        "decoders. The weights of the language model stay behind, named with their sha256, unless --bundle is given; `--base DIR` of generate and chat, or "
        "base=DIR of lmms-eval, gives them back.",
    )
    command.add_argument("--model", type=Path, required=True, help="an exported directory, or a root (its newest export)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write it; must not exist")
    command.add_argument("--bundle", action="store_true", help="the language model's weights too")


def main(args: argparse.Namespace) -> Answer:
    """Run `generate` or `chat`. Raises AnyloomError."""
    if args.max_new_tokens < 1:
        raise AnyloomError(f"--max-new-tokens {args.max_new_tokens}: it must be at least 1")
    from mmcore.inference.next_token import Sampling

    try:
        sampling = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed)
    except ValueError as error:
        raise AnyloomError(f"--{str(error).replace('_', '-', 1)}") from error
    media = [read_medium(modality, path) for modality in MEANT for path in getattr(args, modality)]
    directory = export_directory(args.model)
    generator = load(directory, args.base)
    use = terms(generator.description)
    if use and (args.command == "chat" or not use.endswith("use: yes")):
        print(shown(use), file=sys.stderr)
    speaker = Speaker(generator, directory, args.out, args.seed, args.max_new_tokens)
    try:
        if args.command == "chat":
            said: Any = {"turns": chat(speaker, media, sampling, args.complete_blocks, args.system, args.stop)}
        else:
            said = speaker.say(speaker.generator.stream(args.prompt, media, args.max_new_tokens, sampling, args.complete_blocks, args.system, args.stop))
    except ValueError as error:
        raise AnyloomError(str(error)) from error
    if args.save_conditioning is not None:
        speaker.save_conditioning(args.save_conditioning)
    return Answer({"model": directory, "terms": use} | said)


def read_medium(modality: str, path: Path) -> tuple[str, bytes]:
    """(modality, bytes) of a file. Raises AnyloomError naming a file that cannot be read or is not what its option says."""
    from mmcore.media.decode import MediaError, probe

    try:
        data = path.read_bytes()
        probe(data, modality)
    except OSError as error:
        raise AnyloomError(f"--{modality} {path}: {error.strerror or error}") from None
    except MediaError as error:
        raise AnyloomError(f"--{modality} {path}: this is no {MEANT[modality]} that can be read ({error.detail})") from None
    return modality, data


def export_directory(model: Path) -> Path:
    """An exported directory, or the newest export below a root. Raises AnyloomError when it is neither."""
    if (model / "anyloom.json").exists():
        return model
    if not (model / "artifacts").is_dir():
        raise AnyloomError(f"--model {model}: neither an exported directory (anyloom.json) nor a root with artifacts; run `anyloom run` first")
    return find(model.absolute(), "export")[0]


def terms(description: dict[str, Any]) -> str:
    """What the weights of an exported model permit, in one line with the licences that bind; "" for an export that does not say."""
    if "commercial_use" not in description:
        return ""
    binding = {f"{part['name']}: {part['licence']}": None for part in description["licences"].values() if part.get("commercial_use") != "yes"}
    return f"commercial use: {description['commercial_use']}" + (f" ({'; '.join(binding)})" if binding else "")


def load(directory: Path, base: Path | None = None) -> Any:
    """The Generator of an exported directory. base: see `anyloom pack`. Raises AnyloomError when its files are not what was written."""
    refuse_damaged(directory)
    offline_environment()
    from mmcore.inference.generator import Generator
    from mmcore.runtime.devices import device_for

    return Generator.load(directory, device=device_for(load_settings().num_gpus), base=base)


def shown(text: str) -> str:
    """What a model says, for the terminal: everything that a terminal would obey is escaped as in tables; line breaks stay."""
    return visible(text, keep="\n")


class Speaker:
    """Writes what a model says to the terminal, and what it makes to files in `out` (made when the first one comes). directory: its export."""

    def __init__(self, generator: Any, directory: Path, out: Path, seed: int, max_new_tokens: int):
        from mmcore.inference.drawer import Drawer
        from mmcore.runtime.devices import device_for

        self.generator, self.max_new_tokens = generator, max_new_tokens
        self._out, self._seed = out, seed
        self._drawer = Drawer(directory, device_for(load_settings().num_gpus))
        self._conditioning: dict[str, torch.Tensor] = {}

    def say(self, events: Iterator[Event]) -> dict[str, Any]:
        """Stream one answer to the terminal; what was wrong with its signal tokens goes to stderr. An error comes on a line of its own.

        Returns it for programs: its text, its pieces in their order (texts and media), and what was wrong.
        """
        from mmcore.types import BrokenBlock, TextPiece

        begun, broken = False, list[str]()
        pieces = list[dict[str, Any]]()
        try:
            for event in events:
                if isinstance(event, BrokenBlock):
                    broken.append(event.reason)
                    continue
                if isinstance(event, TextPiece):
                    told, piece = event.text, {"text": event.text}
                else:
                    told, piece = self._medium(event)
                if pieces and "text" in pieces[-1] and "text" in piece:
                    pieces[-1]["text"] += told
                else:
                    pieces.append(piece)
                sys.stdout.write(shown(told))
                sys.stdout.flush()
                begun = True
        except (ValueError, AnyloomError):
            if begun:
                print()
            raise
        print()
        for reason in broken:
            print(shown(reason), file=sys.stderr)
        return {"text": "".join(piece.get("text", "") for piece in pieces), "pieces": pieces, "broken": broken}

    def _medium(self, block: Any) -> tuple[str, dict[str, Any]]:
        """Make the medium of a block; returns what stands for it in the answer, to people and to programs: its path, or its conditioning where no decoder
        makes it."""
        from mmcore.media.encode import SUFFIXES, write_media

        number = len(self._conditioning)
        self._conditioning[f"{block.modality}_{number}"] = block.conditioning_QC
        if not self._drawer.can(block.modality):
            shape = tuple(block.conditioning_QC.shape)
            told = f"<{block.modality}: conditioning {shape[0]} x {shape[1]}; this model has no decoder for it>"
            return told, {"modality": block.modality, "file": None, "conditioning": list(shape)}
        (medium,) = self._drawer.draw([block], [self._seed + number])
        free = next(n for n in range(1, 1_000_000) if not (self._out / f"{block.modality}_{n}{SUFFIXES[block.modality]}").exists())
        path = write_media(medium, self._out / f"{block.modality}_{free}")
        return f"<{path}>", {"modality": block.modality, "file": path, "conditioning": list(block.conditioning_QC.shape)}

    def save_conditioning(self, path: Path) -> None:
        """Write the conditioning of everything made so far. Raises AnyloomError when nothing was."""
        if not self._conditioning:
            raise AnyloomError("--save-conditioning: the model drew nothing, so there is nothing to save")
        from safetensors.torch import save as to_bytes

        from infra.storage import write_atomic

        write_atomic(path, to_bytes({name: tensor.clone() for name, tensor in self._conditioning.items()}))
        print(shown(f"conditioning saved to {path}"), file=sys.stderr)


def chat(
    speaker: Speaker, media: Media, sampling: Sampling | None = None, complete_blocks: bool = True, system: str = "", stop: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One conversation, from the terminal, until it ends. media: shown with the first question; sampling: how answers are written (None: the likeliest);
    system: what the system says first; stop: strings that end an answer.

    complete_blocks: see Conversation.say. An answer that fails is one line; the conversation goes on with what was said of it.
    Returns the questions with their answers, or with the error in the answer's place.
    """
    from mmcore.inference.conversation import Conversation
    from mmcore.inference.next_token import LIKELIEST

    sampling = sampling or LIKELIEST
    conversation = Conversation(speaker.generator, sampling, system, stop)
    turns = list[dict[str, Any]]()
    print("type a question; /image FILE shows an image with the next one; /help lists the rest", file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return turns
        command, _, rest = line.partition(" ")
        if not line or command == "/quit":
            return turns
        if command == "/new":
            conversation, media = Conversation(speaker.generator, sampling, system, stop), []
        elif command == "/help":
            print(CHAT_HELP, file=sys.stderr)
        elif command.removeprefix("/") in MEANT and command.startswith("/"):
            try:
                media = [*media, read_medium(command.removeprefix("/"), Path(rest.strip()))]
            except AnyloomError as error:
                print(shown(str(error)), file=sys.stderr)
        elif command.startswith("/"):
            print(f"{shown(command)}: no such command\n{CHAT_HELP}", file=sys.stderr)
        else:
            try:
                with closing(conversation.say(line, media, speaker.max_new_tokens, complete_blocks)) as events:
                    turns.append({"question": line} | speaker.say(events))
            except (ValueError, AnyloomError) as error:
                turns.append({"question": line, "error": str(error)})
                print(shown(str(error)), file=sys.stderr)
            media = []
