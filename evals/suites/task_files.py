"""Task files: a packaged lmms-eval task on Parquet files of ours.

Owns the YAML that keeps the packaged prompt, scorer and metric and replaces where the data is. Input: a SuiteTask and Parquet files; output: a
directory that `lmms-eval --include_path` runs unchanged. Never imports lmms_eval: its packaged YAML is read as text.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.suites.catalogue import SuiteTask, suite_task
from infra.step import AnyloomError
from infra.storage import sha256_file, write_atomic

BARE = {"pre_prompt": "", "post_prompt": ""}


class _Function(str):
    """A `!function` scalar of a task YAML, kept as its module path."""


def packaged_config(folder: str, name: str) -> dict[str, Any]:
    """A packaged task YAML with its `include` chain merged and every `!function` as an importable path."""
    import yaml

    package = importlib.util.find_spec("lmms_eval")
    if package is None or not package.submodule_search_locations:
        raise AnyloomError("lmms-eval is not installed: install the project with its dependencies")
    directory = Path(package.submodule_search_locations[0], "tasks", folder)

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: _Function(f"lmms_eval.tasks.{folder}.{loader.construct_scalar(node)}"))
    config = yaml.load((directory / name).read_text(), Loader=Loader)  # noqa: S506 (a SafeLoader that keeps !function as text)
    include = config.pop("include", None)
    return {**(packaged_config(folder, include) if include else {}), **config}


def task_yaml(task: str | SuiteTask, data: str | Sequence[str], cache_dir: Path | None = None) -> str:
    """Text of the task YAML on Parquet files: names beside it, or absolute paths.

    A task that is `bare` gives the model `anyloom` the question alone, as in its training, and every other model the packaged prompt. cache_dir: where
    `datasets` unpacks the files; its default when None. Raises AnyloomError for an unknown task.
    """
    import yaml

    task = suite_task(task) if isinstance(task, str) else task

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(_Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))
    config = packaged_config(*task.packaged)
    kwargs: dict[str, Any] = {"data_files": {str(config["test_split"]): data if isinstance(data, str) else list(data)}}
    if cache_dir is not None:
        kwargs["cache_dir"] = str(cache_dir.resolve())
    config |= {"task": task.lmms_task, "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": kwargs}
    if task.bare:
        config["lmms_eval_specific_kwargs"] = {**config.get("lmms_eval_specific_kwargs", {}), "anyloom": BARE}
    config |= task.overrides
    for name in [name for name, value in task.overrides.items() if value is None]:
        del config[name]
    if task.drop_metrics:
        config["metric_list"] = [metric for metric in config["metric_list"] if metric["metric"] not in task.drop_metrics]
    for name in ("group", "tag"):
        config.pop(name, None)
    return yaml.dump(config, Dumper=Dumper, sort_keys=True, allow_unicode=True)


def write_task_dir(target_dir: Path, parquet: Path, task: str = "easyvqa_as_vqav2", cache_dir: Path | None = None) -> Path:
    """Make `target_dir` a directory for `lmms-eval --include_path`: the YAML and its Parquet beside each other.

    lmms-eval resolves the file name against the YAML's directory, so the directory can be moved or copied as a whole.
    Returns the path of the YAML. Raises AnyloomError when `parquet` does not exist.
    """
    if not parquet.is_file():
        raise AnyloomError(f"{parquet} does not exist: run the evaluation step first")
    target_dir.mkdir(parents=True, exist_ok=True)
    beside = target_dir / f"{task}.parquet"
    if parquet.resolve() != beside.resolve() and not (beside.exists() and sha256_file(beside) == sha256_file(parquet)):
        write_atomic(beside, parquet.read_bytes())
    path = target_dir / f"{task}.yaml"
    write_atomic(path, task_yaml(task, beside.name, cache_dir))
    return path
