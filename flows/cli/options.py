"""Options that commands share, and what they say: pairs, overrides, settings. Raises AnyloomError for a form that is wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.suites.catalogue import SUITES
from infra.settings import Settings, load_settings
from infra.step import AnyloomError
from pipelines.recipes.files import absolute
from pipelines.recipes.own_data import absolute_list, checked_data


def shared_options() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser, argparse.ArgumentParser]:
    """Options that commands share: where everything is, which recipe, how it runs; each includes the one before."""
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--root", type=Path, help="directory of artifacts, stores, history and report")
    which = argparse.ArgumentParser(add_help=False, parents=[where])
    which.add_argument(
        "--recipe", default="smol", type=absolute, help="a name from `anyloom recipes`, or a file of yours: my_model.py, my_model.py:name (default: smol)"
    )
    which.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="change a recipe value, e.g. stage3.lr=1e-4; may be repeated"
    )
    which.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="DATASET=FILE",
        dest="lists",
        help="a list file of your own in place of the recipe's, e.g. stamps_train=my_cc3m.tsv (same format; paths in it are relative to it)",
    )
    which.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FORMAT:FILE",
        dest="data",
        help="a dataset of your own, added to the recipe or in place of one of its: a name of yours, the list's format (cc3m, webvid, audiocaps, instruct) "
        "and its file, e.g. photos=cc3m:photos.tsv; more of it with --set datasets.photos.heldout=0.1 (media_roots, media_template, span_s, split, licence)",
    )
    which.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="SUITE=RECORD",
        dest="suites",
        help="official benchmarks to be run besides, as prepared: core=DATA/core.json (anyloom eval prepare core --data DATA)",
    )
    which.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="MODEL=PATH",
        dest="weights",
        help="weights you have got yourself: imagebind=imagebind_huge.pth (the released file), lm= a transformers directory of a language model in "
        "safetensors, or image=, audio=, text= for what the recipe's encoder opens: "
        "a transformers directory (hf_*, whisper_audio, bert_text), a diffusers directory (vae_image), a timm .safetensors or .pth (timm_*); or "
        "decoder_image=, decoder_video=, decoder_audio= for a published decoder that the recipe names: its diffusers directory",
    )
    how = argparse.ArgumentParser(add_help=False, parents=[which])
    how.add_argument("--force", action="append", default=[], metavar="STEP", help="run this step even if it is done; equal bytes change nothing downstream")
    how.add_argument("--threads", type=int, help="CPU threads in all (default: every core)")
    how.add_argument("--no-prefect", action="store_false", dest="use_prefect", default=None, help="run the same steps without a Prefect server")
    how.add_argument("--no-ray", action="store_false", dest="use_ray", default=None, help="run the same steps without Ray, each in a process of its own")
    how.add_argument("--remote", help="fsspec URL that mirrors finished artifacts, e.g. s3://bucket/anyloom")
    return where, which, how


def parse_pairs(pairs: Sequence[str], option: str, form: str) -> dict[str, str]:
    """`key=value` pairs. Raises AnyloomError on a pair without `=`."""
    found = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise AnyloomError(f"{option} {pair}: write {form}")
        found[key] = text
    return found


def given_lists(args: argparse.Namespace) -> dict[str, str]:
    """Dataset -> FILE of --list, or FORMAT:FILE of --data, and suite -> record of --suite, with absolute paths.

    Raises AnyloomError for a form that is wrong, a suite that there is not, and a dataset given twice."""
    found = parse_pairs(args.lists, "--list", "DATASET=FILE")
    for name, given in parse_pairs(args.data, "--data", "NAME=FORMAT:FILE").items():
        if name in found:
            raise AnyloomError(f"--data {name}={given}: {name} is given with --list too; give it once")
        found[name] = checked_data(name, given)
    suites = parse_pairs(args.suites, "--suite", "SUITE=RECORD, e.g. core=DATA/core.json")
    unknown = sorted(set(suites) - set(SUITES))
    if unknown:
        raise AnyloomError(f"--suite {unknown[0]}: no such suite; there are: {', '.join(SUITES)}")
    return {name: absolute_list(given) for name, given in (found | suites).items()}


def given_weights(args: argparse.Namespace) -> dict[str, str]:
    """Model -> path of --weights. Raises AnyloomError for a form that is wrong."""
    return parse_pairs(args.weights, "--weights", "MODEL=PATH")


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is JSON where it parses, else text. Raises AnyloomError on a pair without `=`."""
    found: dict[str, Any] = {}
    for key, text in parse_pairs(pairs, "--set", "KEY=VALUE, e.g. --set stage3.lr=1e-4").items():
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = {"True": True, "False": False}.get(text, text)
    return found


def settings_of(args: argparse.Namespace) -> Settings:
    """Settings from the options given; the environment fills the rest."""
    names = ("root", "threads", "use_ray", "use_prefect", "remote")
    return load_settings(**{name: getattr(args, name, None) for name in names})
