"""Suite data: official benchmark data as local Parquet, prepared once and read offline ever after.

Owns what `anyloom eval prepare` writes: <data>/<task>/ with the Parquet files, prepared.json (sha256 of each) and the task YAML, and <data>/<suite>.json,
which pins them all. Input: the hub, or a folder with the official files; output: files whose schema was checked.

Files are copied byte by byte. GQA's questions and images, which the hub keeps apart, are joined.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.suites.catalogue import SuiteTask, suite_tasks
from evals.suites.hub_parquet import image_columns
from evals.suites.rows import key_columns, row_names
from evals.suites.task_files import task_yaml
from infra.step import AnyloomError
from infra.storage import read_json, sha256_file, write_atomic

PREPARED = "prepared.json"
Say = Callable[[str], None]


def prepare(suite: str, data: Path, source: Path | None = None, judged: bool = True, say: Say = print) -> Path:
    """Prepare every task of a suite below `data`; what is there already and whole is kept. Returns <data>/<suite>.json.

    source: a folder with one folder per data set, named like it on the hub (VQAv2, textvqa, MMBench, ...) or like the task; None asks the hub. judged:
    False leaves out the tasks that need a judge. Raises AnyloomError naming the file and the column that is not as the official data has it, or two
    rows that have one name.
    """
    tasks = suite_tasks(suite)
    made = [task.lmms_task for task in tasks if task.stand_in]
    if made:
        raise AnyloomError(f"suite {suite} is made of the demo's own data: nothing is to be prepared, name it in the recipe (suites)")
    pinned: dict[str, str] = {}
    for task in tasks:
        if task.judge and not judged:
            say(f"{task.lmms_task}: left out, it needs a judge")
            continue
        record = data / task.lmms_task / PREPARED
        if not _whole(record):
            found = _from_hub(task) if source is None else _folder(task, source)
            _prepare_task(task, found, record.parent)
        rows = read_json(record)["rows"]
        say(f"{task.lmms_task}: {rows} questions in {record.parent}")
        pinned[task.lmms_task] = sha256_file(record)
    path = data / f"{suite}.json"
    write_atomic(path, json.dumps({"suite": suite, "tasks": pinned}, indent=1, sort_keys=True))
    return path


def prepared_files(suite_record: Path, task: SuiteTask) -> list[Path]:
    """The Parquet files of a prepared task. Raises AnyloomError when the suite does not have it, or its bytes are not those that were prepared."""
    pinned = read_json(suite_record)["tasks"]
    if task.lmms_task not in pinned:
        raise AnyloomError(f"{suite_record} has no {task.lmms_task}; it has {', '.join(pinned) or 'nothing'}: prepare it again (anyloom eval prepare)")
    record = suite_record.parent / task.lmms_task / PREPARED
    if not record.is_file() or sha256_file(record) != pinned[task.lmms_task]:
        raise AnyloomError(f"{record} is not the one that {suite_record} pins: prepare the suite again (anyloom eval prepare)")
    files = []
    for entry in read_json(record)["files"]:
        path = record.parent / entry["name"]
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            raise AnyloomError(f"{path} is missing or has other bytes than were prepared: prepare the suite again (anyloom eval prepare)")
        files.append(path)
    return files


def _whole(record: Path) -> bool:
    """True when everything the record names is there."""
    return record.is_file() and all((record.parent / entry["name"]).is_file() for entry in read_json(record)["files"])


def _prepare_task(task: SuiteTask, folder: Path, target: Path) -> None:
    """Check, copy or join the files of one task; its record last."""
    import pyarrow.parquet as pq

    files = _files_of(task, folder, task.hub_config, task.split)
    if target.is_dir():
        shutil.rmtree(target)  # a preparation that was interrupted: its record is missing
    target.mkdir(parents=True)
    names = [f"{task.split}-{number:05d}.parquet" for number in range(len(files))]
    if task.images is not None:
        names = names[:1]
        _join(task, files, _files_of(task, folder, *task.images[:2]), target / names[0])
    else:
        for name, file in zip(names, files, strict=True):
            check_schema(task, file)
            shutil.copyfile(file, target / name)
    check_schema(task, target / names[0])
    check_names(task, [target / name for name in names])
    rows = [pq.ParquetFile(target / name).metadata.num_rows for name in names]
    text = task_yaml(task, names)
    write_atomic(target / f"{task.lmms_task}.yaml", text)
    # the harness's own shell command knows a task of this name already, whose data is on the hub
    write_atomic(target / f"{task.lmms_task}_local.yaml", text.replace(f"task: {task.lmms_task}\n", f"task: {task.lmms_task}_local\n"))
    entries = [{"name": name, "rows": count, "sha256": sha256_file(target / name)} for name, count in zip(names, rows, strict=True)]
    record = {"format": 1, "lmms_task": task.lmms_task, "hub": task.hub, "config": task.hub_config, "split": task.split, "rows": sum(rows), "files": entries}
    write_atomic(target / PREPARED, json.dumps(record, indent=1, sort_keys=True))


def check_schema(task: SuiteTask, file: Path) -> None:
    """Raises AnyloomError when a column that the packaged task reads is missing or no image, MMBench's index no number, or VQAv2's annotators have no id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    missing = [name for name in task.columns if name not in schema.names]
    if missing:
        raise AnyloomError(f"{file}: {task.lmms_task} needs the column {missing[0]}, the file has {', '.join(schema.names)}: take the files of {task.hub}")
    if task.rotations and not pa.types.is_integer(schema.field("index").type):
        raise AnyloomError(f"{file}: column index is {schema.field('index').type}, not an integer: take a newer revision of {task.hub}")
    if task.annotator_ids and "answer_id" not in _fields_of(schema.field("answers").type):
        raise AnyloomError(
            f"{file}: column answers has no answer_id, by which {task.lmms_task}'s scorer tells the annotators apart (without it ten right answers score 0): "
            f"take the files of {task.hub}"
        )
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    for name in image_columns([file]):
        if "Image" not in json.dumps(features.get(name, {})):
            raise AnyloomError(f"{file}: column {name} holds images but its metadata does not say so: write it with `datasets` (Dataset.to_parquet)")


def check_names(task: SuiteTask, files: Sequence[Path]) -> None:
    """Raises AnyloomError when two rows of the files have one name (evals.suites.rows.row_names)."""
    import pyarrow.parquet as pq

    columns = list(key_columns(task, pq.read_schema(files[0]).names))
    row_names(task, [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()] if columns else [])


def _fields_of(kind: Any) -> list[str]:
    """Names of the fields of a list of structs; none of another type."""
    import pyarrow as pa

    of = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    return [of.field(place).name for place in range(of.num_fields)] if of is not None and pa.types.is_struct(of) else []


def _files_of(task: SuiteTask, folder: Path, config: str, split: str) -> list[Path]:
    """The Parquet files of one config and split, in order: those in a folder of the config's name, or all, whose name begins with the split."""
    found = sorted(path for path in folder.rglob("*.parquet") if path.name.startswith(f"{split}-") or path.stem == split)
    own = [path for path in found if config in path.relative_to(folder).parts[:-1]] if config else found
    if not own and config and len({path.parent for path in found}) == 1:
        own = found  # a folder that holds this config only
    if not own:
        where = f"{config}/" if config else ""
        raise AnyloomError(f"{folder} has no Parquet file {where}{split}-*.parquet of {task.hub}: download the data set as it is on the hub")
    return own


def _folder(task: SuiteTask, source: Path) -> Path:
    for name in (task.lmms_task, task.hub.split("/")[1]):
        if (source / name).is_dir():
            return source / name
    raise AnyloomError(f"{source} has no folder {task.hub.split('/')[1]} (or {task.lmms_task}) with the files of {task.hub}")


def _from_hub(task: SuiteTask) -> Path:
    """A snapshot of the data set's Parquet files. Raises AnyloomError when the hub cannot be reached or refuses."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    configs = [config for config in (task.hub_config, task.images[0] if task.images else "") if config]
    patterns = [f"*{config}*/*.parquet" for config in configs] or [f"*{task.split}-*.parquet"]
    try:
        return Path(snapshot_download(task.hub, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise AnyloomError(f"{task.hub} cannot be downloaded ({first}): download it elsewhere and give its folder with --from") from error


def _join(task: SuiteTask, questions: Sequence[Path], images: Sequence[Path], target: Path) -> None:
    """Questions with the image of their key. Raises AnyloomError for a question whose image is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert task.images is not None
    key = task.images[2]
    asked = pa.concat_tables([pq.read_table(file) for file in questions])
    shown = pa.concat_tables([pq.read_table(file, columns=["id", "image"]) for file in images])
    place = {name: number for number, name in enumerate(shown.column("id").to_pylist())}
    lost = sorted({name for name in asked.column(key).to_pylist() if name not in place})
    if lost:
        raise AnyloomError(f"{task.hub} has no image {lost[0]} ({len(lost)} are missing): download {task.images[0]} again")
    taken = shown.column("image").take(pa.array([place[name] for name in asked.column(key).to_pylist()]))
    features = _features(pq.read_schema(questions[0])) | {"image": {"_type": "Image"}}
    joined = asked.append_column("image", taken)
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    pq.write_table(joined.replace_schema_metadata(metadata), target, compression="zstd")


def _features(schema: Any) -> dict[str, Any]:
    """The types that `datasets` gave the columns. Raises AnyloomError when the file does not say."""
    found: dict[str, Any] = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    if not found:
        raise AnyloomError("the questions' metadata does not say what their columns are: write them with `datasets` (Dataset.to_parquet)")
    return found
