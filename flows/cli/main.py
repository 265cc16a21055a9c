"""anyloom: the command line. Each command is one function here that hands over to the layer that owns the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.cli.options import given_lists, given_weights, parse_overrides, settings_of, shared_options
from flows.cli.unexpected import unexpected
from flows.running.answer import Answer, add_json, give
from flows.running.cells import visible
from flows.running.interrupts import MESSAGES, Terminated, sigterm_raises
from infra.logs import one_line
from infra.step import AnyloomError

EPILOG = """examples:
  anyloom doctor                                what this machine can do, and what each missing thing costs
  anyloom run --recipe smol                     everything: lists, shards, embeddings, stages 1-3, evaluation, report
  anyloom plan --set stage3.lr=1e-4             what that change would run again, and why
  anyloom run --set stage3.lr=1e-4              run just that
  anyloom show runs                             the newest report, in the browser
  anyloom generate --model runs --image cat.png "What is this?"
  anyloom sql "select * from leaderboard"       the benchmark history
  anyloom report --history                      the same as a page: trends, two checkpoints question by question
  anyloom artifacts why stage3                  what an artifact was made from, down to the source lists
Every command takes --root DIR (default: runs, or ANYLOOM_ROOT). `anyloom COMMAND --help` says more."""

STAGED = {
    "data": (("manifest_*", "shards_*", "overlap"), "source lists -> manifests -> WebDataset shards"),
    "train": (("export",), "the three training stages and the exported model"),
    "eval": (("eval_*",), "lmms-eval suites and held-out checks"),
    "history": (("history",), "evaluation results -> history.duckdb; build, import, export, check, annotate"),
    "report": (("report",), "report.html of a run; history.html of every run, two of them side by side"),
}


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    from flows.cli import embed as store
    from flows.cli import history, report, suites
    from flows.cli.ask import add_ask, add_pack
    from flows.cli.doctor import add_doctor
    from flows.cli.new import add_new
    from flows.cli.show import add_show
    from flows.cli.train_decoder import add_train_decoder
    from flows.deployments import stack

    parser = argparse.ArgumentParser(
        prog="anyloom",
        description="Train and evaluate any-to-any multimodal LLMs as one DAG of resumable steps.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    where, which, how = shared_options()
    run = commands.add_parser("run", parents=[how], help="run a recipe, or the steps named", description="Materialize a recipe. What is done is kept.")
    run.add_argument("targets", nargs="*", metavar="STEP", help="only these steps and what they need; a trailing * matches by prefix")
    for name, (targets, what) in STAGED.items():
        if name == "history":
            history.add_commands(commands, where, how, what)
            continue
        if name == "report":
            report.add_commands(commands, how, what)
            continue
        staged = commands.add_parser(name, parents=[how], help=what, description=f"Same as `anyloom run {' '.join(targets)}`: {what}.")
        staged.set_defaults(targets=list(targets))
        if name == "eval":
            suites.add_prepare(staged)
    store.add_commands(commands, where, which, how)
    add_doctor(commands, [where])
    add_show(commands)
    add_train_decoder(commands, how)
    stack.add_stack(commands)
    commands.add_parser("plan", parents=[which], help="each step: done, partial, missing, stale, damaged or waiting, with the reason")
    recipes = commands.add_parser("recipes", help="the recipes, a line each; of one its parts, licences, what each stage trains, memory")
    recipes.add_argument("name", nargs="?", help="say everything about this one")
    recipes.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="change a value of it first")

    add_new(commands)
    commands.add_parser("encoders", help="the known encoder weights: kind, licence, commercial use, features, tiny twin")
    commands.add_parser("decoders", help="the known decoder weights: family, licence, commercial use, what they predict, tiny twin")

    _add_artifacts(commands, where)
    add_ask(commands)
    add_pack(commands)
    taskdir = commands.add_parser("eval-task", parents=[where], help="write a folder that `lmms-eval --include_path` can run on")
    taskdir.add_argument("directory", type=Path)
    add_json(parser)
    return parser


def _add_artifacts(commands: Any, where: argparse.ArgumentParser) -> None:
    artifacts = commands.add_parser(
        "artifacts",
        parents=[where],
        help="what exists: list, why NAME, verify, gc",
        description="Look at artifacts and the stores behind them. verify reads every byte, and names what is damaged and the command that makes it again.",
    )
    artifacts.add_argument("action", nargs="?", default="list", choices=("list", "why", "verify", "gc"))
    artifacts.add_argument(
        "name", nargs="?", help="step, or step/fingerprint; for gc: recipes to keep, comma-separated (default: tiny,smol and what is newest)"
    )
    artifacts.add_argument("--yes", action="store_true", help="gc: remove without asking")


def cmd_run(args: argparse.Namespace) -> Answer:
    """run, data, train, eval; report without --history; history without an action; embed build."""
    from flows.cli.run import run_recipe

    return run_recipe(
        args.recipe,
        settings=settings_of(args),
        overrides=parse_overrides(args.overrides),
        targets=args.targets or None,
        force=args.force,
        lists=given_lists(args),
        weights=given_weights(args),
    )


def cmd_eval(args: argparse.Namespace) -> Answer:
    """eval"""
    from flows.cli import suites

    return suites.main(args) if args.action == "prepare" else cmd_run(args)


def cmd_embed(args: argparse.Namespace) -> Answer:
    """embed"""
    from flows.cli import embed as store

    if args.action == "build":
        return cmd_run(args)
    return args.handler(args) if args.action == "search" else store.main(args, settings_of(args).root.absolute())


def cmd_doctor(args: argparse.Namespace) -> Answer:
    """doctor"""
    from flows.cli import doctor

    return doctor.main(settings_of(args))


def cmd_show(args: argparse.Namespace) -> Answer:
    """show"""
    from flows.cli import show

    return show.main(settings_of(args), args.only_print)


def cmd_train_decoder(args: argparse.Namespace) -> Answer:
    """train-decoder"""
    from flows.cli import train_decoder

    return train_decoder.main(args)


def cmd_stack(args: argparse.Namespace) -> Answer:
    """stack"""
    from flows.deployments import stack

    return stack.main(args, settings_of(args).root.absolute())


def cmd_plan(args: argparse.Namespace) -> Answer:
    """plan"""
    from flows.cli.run import plan_recipe

    return plan_recipe(args.recipe, settings_of(args).root.absolute(), parse_overrides(args.overrides), given_lists(args), given_weights(args))


def cmd_recipes(args: argparse.Namespace) -> Answer:
    """recipes"""
    from flows.cli import catalogues

    return catalogues.recipes(args.name, parse_overrides(args.overrides))


def cmd_new(args: argparse.Namespace) -> Answer:
    """new"""
    from flows.cli import new

    return new.main(args)


def cmd_encoders(args: argparse.Namespace) -> Answer:
    """encoders"""
    from flows.cli import catalogues

    return catalogues.known_encoders()


def cmd_decoders(args: argparse.Namespace) -> Answer:
    """decoders"""
    from flows.cli import catalogues

    return catalogues.known_decoders()


def cmd_history(args: argparse.Namespace) -> Answer:
    """history"""
    from flows.cli import history

    return history.main(args, settings_of(args).root.absolute()) if args.action else cmd_run(args)


def cmd_report(args: argparse.Namespace) -> Answer:
    """report"""
    from flows.cli import report

    run = None if args.history else cmd_run(args)
    return report.write(args, settings_of(args).root.absolute(), run)


def cmd_sql(args: argparse.Namespace) -> Answer:
    """sql"""
    from flows.cli import history

    return history.sql(args, settings_of(args).root.absolute())


def cmd_artifacts(args: argparse.Namespace) -> Answer:
    """artifacts"""
    from flows.cli import artifacts

    return artifacts.main(args.action, args.name, settings_of(args).root.absolute(), args.yes)


def cmd_ask(args: argparse.Namespace) -> Answer:
    """generate, chat"""
    from flows.cli import ask

    return ask.main(args)


def cmd_pack(args: argparse.Namespace) -> Answer:
    """pack"""
    from flows.cli.ask import export_directory
    from pipelines.training.pack import pack

    said = pack(export_directory(args.model), args.out, args.bundle)
    return Answer({"directory": args.out, "bundle": args.bundle, "said": said}, lambda: print(said))


def cmd_eval_task(args: argparse.Namespace) -> Answer:
    """eval-task"""
    from evals.suites.task_files import write_task_dir
    from infra.artifact import find

    path, _ = find(settings_of(args).root.absolute(), "eval_vqa")
    directory, task = args.directory.absolute(), "easyvqa_as_vqav2"
    write_task_dir(directory, path / "task" / f"{task}.parquet")
    lines = (
        f"now: lmms-eval --model anyloom --model_args path=EXPORT --tasks {task} \\",
        f"       --include_path {directory} --log_samples --output_path OUT",
    )
    return Answer({"directory": directory, "task": task}, lambda: print(*lines, sep="\n"))


COMMANDS = dict.fromkeys(STAGED, cmd_run) | {
    "embed": cmd_embed,
    "doctor": cmd_doctor,
    "show": cmd_show,
    "train-decoder": cmd_train_decoder,
    "stack": cmd_stack,
    "plan": cmd_plan,
    "recipes": cmd_recipes,
    "new": cmd_new,
    "encoders": cmd_encoders,
    "decoders": cmd_decoders,
    "sql": cmd_sql,
    "artifacts": cmd_artifacts,
    "generate": cmd_ask,
    "chat": cmd_ask,
    "pack": cmd_pack,
    "eval-task": cmd_eval_task,
    "run": cmd_run,
    "eval": cmd_eval,
    "history": cmd_history,
    "report": cmd_report,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. A mendable error is one line on stderr and exit code 1; Ctrl-C is 130, SIGTERM 143."""
    args = build_parser().parse_args(argv)
    try:
        with sigterm_raises():
            return give(lambda: COMMANDS[args.command](args), args.json)
    except AnyloomError as error:
        print(f"anyloom: {visible(one_line(error))}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else 143
        print(MESSAGES[code], file=sys.stderr)
        return code
    except BrokenPipeError:
        return 141
    except Exception as error:
        return unexpected(args, error)


if __name__ == "__main__":
    sys.exit(main())
