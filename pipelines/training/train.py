"""The training step: one stage, in process or under Ray Train, with the same bytes.

Input: frozen LM weights, earlier stages, features and shards (stages 1 and 3) or cached states and targets (stage 2; with a denoising loss also
decoders and latents; stage 1 with generation losses takes these too); features, caption vectors and shards (two_tower).
Output: tensors.safetensors (and lora/), losses.parquet, stage.json, and where records do not fit a ledger.parquet that says why. Our own checkpoints in the
work directory are the truth: a worker that dies is started again and goes on from them. Bytes hold for one machine, thread count and number of workers; others
change rounding only.
Ray only starts the workers, or none for one rank on this machine's CPUs: it stores nothing that is read again.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.fingerprint import to_plain
from infra.progress import FileProgress, relay
from infra.settings import cluster_is_given, thread_environment
from infra.step import AnyloomError, Progress, StepContext
from infra.storage import read_json, write_atomic
from mmcore.config import ModelSpec, RowsStage, StatesStage
from mmcore.lm.lora import save_lora
from mmcore.model.any_model import LORA, TENSORS, load_model, load_tensors
from mmcore.runtime.devices import device_for
from mmcore.stores.left_out import LeftOut
from mmcore.training.caption_generation import CaptionGeneration
from mmcore.training.fitting import Fitting, check_lost
from mmcore.training.rows import ChatData
from mmcore.training.signals import SignalSide, StateSet
from mmcore.training.stages import saved_tensors, stage_spec
from mmcore.training.states import SignalData, with_states
from mmcore.training.targets import with_targets
from pipelines.embed.config import TARGETS
from pipelines.shards.config import GROUP_MODALITY
from pipelines.training.config import NEEDS_OUTPUT_PROJECTORS, TrainConfig
from pipelines.training.data import (
    STAGE_RECORD,
    dataset_samples,
    earlier_stages,
    feature_sources,
    feature_weights,
    generation_losses,
    shard_sets,
    target_sources,
    true_captions,
)
from pipelines.training.ledger import left_out, write_ledger
from pipelines.training.loop import Collective, TorchCollective, run_stage
from pipelines.training.states import run_states
from pipelines.training.two_tower import two_tower_stage

__all__ = ["run", "run_states"]
MAX_FAILURES = 2
"""Restarts of a Ray Train run before its error reaches the user."""
_FIT_TOKENS = 65536


def _fit_input_projectors(model: Any, data: Any, modalities: list[str]) -> None:
    """Standardise each modality's features over the stage's training samples, in key order."""
    for modality in modalities:
        keys = sorted({sample.key for samples in data.samples.values() for sample in samples if sample.modality == modality})
        source = data.features.get(modality)
        if keys and source is not None:
            model.input_projectors[modality].fit(_feature_chunks(source, keys))


def _feature_chunks(source: Any, keys: list[str], rows: int = 256) -> Iterator[Any]:
    """Feature tokens [n, E] of keys, evenly thinned out to about _FIT_TOKENS tokens."""
    _, lengths = source.gather(keys[:1])
    stride = max(1, len(keys) * max(1, int(lengths[0])) // _FIT_TOKENS)
    kept = keys[::stride]
    for start in range(0, len(kept), rows):
        features_BNE, lengths_B = source.gather(kept[start : start + rows])
        for features_NE, length in zip(features_BNE, lengths_B.tolist(), strict=True):
            yield features_NE[:length]


def _chat_stage(config: TrainConfig, stage: RowsStage, ctx: StepContext[TrainConfig], device: str, stages: tuple[Path, ...]) -> tuple[Any, Any, list[LeftOut]]:
    """(AnyModel, ChatData, samples that do not fit) of a stage on rows. Raises ValueError when too many of them do not."""

    assert isinstance(config.model, ModelSpec)
    spec = stage_spec(stage.stage)
    model = load_model(config.model, ctx.inputs["weights_lm"].path / "lm", stages, device)
    if spec.lora:
        model.add_lora()
    shards = shard_sets(ctx.inputs, ctx.stores)
    lost: list[LeftOut] = []
    samples, groups = dataset_samples(shards, [name for name, _ in stage.mixture], lost)
    captions = true_captions(shards) if stage.caption_turn else {}
    features = feature_sources(ctx.inputs, ctx.stores, dict(config.model.encoders))
    blocks = set(_generated(ctx, groups, samples)) if stage.generation_loss else set()
    fitting = Fitting(stage, model.chat, features, config.model.input_projector, captions, model.lm.longest, blocks)
    samples, more = fitting.samples(samples)
    lost += more
    targets, denoised = _goals(stage, ctx, device, stages) if stage.generation_loss else ({}, {})
    if stage.generation_loss:
        samples, more = with_targets(samples, {name: GROUP_MODALITY.get(group, "") for name, group in groups.items()}, targets, _latents(stage, denoised))
        lost += more
    check_lost(lost, samples, stage.max_lost)
    generation = CaptionGeneration(stage, model, _generated(ctx, groups, samples), targets, denoised) if stage.generation_loss else None
    data = ChatData(stage, model.chat, samples, features, config.model.input_projector, captions, generation, routed=config.model.lora.mode == "per_modality")
    if spec.saves:
        _fit_input_projectors(model, data, [modality for modality, _ in config.model.encoders])
    return model, data, lost


def _goals(stage: RowsStage, ctx: StepContext[TrainConfig], device: str, stages: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(caption targets, GenerationLoss) by modality of a stage with generation losses. Raises AnyloomError where no earlier stage trained output projectors."""

    if not any(read_json(path / STAGE_RECORD)["stage"] == "stage2" for path in stages):
        raise AnyloomError(f"{ctx.name}: {NEEDS_OUTPUT_PROJECTORS}")
    return target_sources(ctx.inputs, ctx.stores), generation_losses(ctx.inputs, ctx.stores, stage, device)


def _latents(stage: RowsStage | StatesStage, denoised: dict[str, Any]) -> dict[str, Any]:
    """modality -> latents that the stage's denoising loss needs."""
    return {modality: loss.latents for modality, loss in denoised.items()} if stage.denoise_loss else {}


def _generated(ctx: StepContext[TrainConfig], groups: dict[str, str], samples: dict[str, list[Any]]) -> dict[str, list[str]]:
    """modality -> the stage's captions whose targets are given."""
    captions: dict[str, list[str]] = {}
    for name, rows in samples.items():
        modality = GROUP_MODALITY.get(groups[name])
        if modality is not None and TARGETS[modality] in ctx.inputs:
            captions.setdefault(modality, []).extend(text for sample in rows for text in sample.texts)
    return captions


def _signal_stage(
    config: TrainConfig, stage: StatesStage, ctx: StepContext[TrainConfig], device: str, stages: tuple[Path, ...]
) -> tuple[Any, Any, list[LeftOut]]:
    """(SignalSide, SignalData, samples without states, targets or latents) of a stage on states. The output projectors go on from an earlier one, where there
    is one; the token rows are the states'."""

    assert isinstance(config.model, ModelSpec)
    states = StateSet(ctx.inputs["states"].path)
    side = SignalSide(config.model, states)
    for path in stages:
        load_tensors(side, path / TENSORS, only="output_projectors.")
    samples, groups = dataset_samples(shard_sets(ctx.inputs, ctx.stores), [name for name, _ in stage.mixture])
    modalities = {name: GROUP_MODALITY.get(group, "text") for name, group in groups.items()}
    samples, lost = with_states(samples, modalities, states)
    targets, denoised = target_sources(ctx.inputs, ctx.stores), generation_losses(ctx.inputs, ctx.stores, stage, device)
    samples, more = with_targets(samples, modalities, targets, _latents(stage, denoised))
    lost += more
    check_lost(lost, samples, stage.max_lost)
    return side, SignalData(stage, side, samples, modalities, states, targets, denoised), lost


def _train(ctx: StepContext[TrainConfig], threads: int, device: str, collective: Any, progress: Progress) -> dict[str, Any]:
    """One rank's whole work; rank 0 writes the output. Mendable errors become AnyloomError."""
    import torch

    torch.set_num_threads(threads)
    config = ctx.config
    names = [name for name in earlier_stages(ctx.inputs) if name != ctx.name]
    stages = tuple(ctx.inputs[name].path for name in names)
    lost: list[LeftOut] = []
    try:
        if isinstance(config.stage, StatesStage):
            model, data, lost = _signal_stage(config, config.stage, ctx, device, stages)
        elif isinstance(config.stage, RowsStage):
            model, data, lost = _chat_stage(config, config.stage, ctx, device, stages)
        else:
            model, data, lost = two_tower_stage(config, ctx, collective)
        model.to(device)
        trained, log, seconds = run_stage(config.stage, model, data, ctx.work, collective, progress)
    except ValueError as error:
        raise AnyloomError("; ".join([f"{ctx.name}: {error}", *getattr(error, "__notes__", ())])) from error
    if collective.rank == 0:
        _write(ctx, model, trained, log, seconds, names)
        write_ledger(lost, ctx.output)
    return {
        "stage": config.stage.stage,
        "steps": config.stage.steps,
        "trained_parameters": sum(p.numel() for p in trained.values()),
        **{f"final_{name}": value for name, value in log.tail_means().items()},
        **left_out(lost, getattr(data, "samples", {}), getattr(model, "chat", None)),
    }


def _write(ctx: StepContext[TrainConfig], model: Any, trained: dict[str, Any], log: Any, seconds: float, after: list[str]) -> None:
    from safetensors.torch import save

    config = ctx.config
    tensors = saved_tensors(model, config.stage, trained)
    write_atomic(ctx.output / TENSORS, save({name: value.contiguous() for name, value in tensors.items()}))
    if isinstance(config.model, ModelSpec) and any(".lora_" in name for name in trained):
        save_lora(model.lm.base, config.model.lora, ctx.output / LORA)
    log.write(ctx.output / "losses.parquet")
    described = {"config": to_plain(config.stage), "model": to_plain(config.model), "features": feature_weights(ctx.inputs)}
    record = {"stage": config.stage.stage, "after": after} | described
    write_atomic(ctx.output / STAGE_RECORD, json.dumps(record, sort_keys=True, indent=1))
    lm_dtype = getattr(getattr(model, "lm", None), "dtype", None)  # of a stage that runs the language model
    computed_in = {"lm_dtype": str(lm_dtype).removeprefix("torch.")} if lm_dtype else {}
    timing = {"steps_s": round(seconds, 3), "steps": config.stage.steps, "tokens": sum(row[3] for row in log.rows)} | computed_in
    write_atomic(ctx.output / "info" / "timing.json", json.dumps(timing, sort_keys=True))


@contextmanager
def _relaying(path: Path, progress: Progress) -> Iterator[None]:
    """Pass the progress file on to `progress` while the body runs."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(0.5):
            relay(path, progress)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        relay(path, progress)


def _silent(done: float, total: float, note: str = "") -> None:
    """The Progress of ranks other than 0."""


def _worker_device(gpus: int) -> str:
    """This rank's device. Raises AnyloomError when it should be a GPU and torch sees none."""
    import torch
    from ray.train.torch import get_device

    if device_for(gpus) == "cpu":
        return "cpu"
    device = get_device()
    torch.cuda.set_device(device)
    return str(device)


def _worker(parcel: dict[str, Any]) -> None:
    """What each Ray Train worker runs. A mendable error is left in a file for the driver, and no restart tries it again."""
    import torch

    ctx: StepContext[TrainConfig] = parcel["ctx"]
    if (ctx.work / "error.json").exists():
        return
    thread_environment(parcel["threads"])
    collective = TorchCollective() if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1 else Collective()
    progress = FileProgress(ctx.work / "progress.json") if collective.rank == 0 else _silent
    try:
        result = _train(ctx, parcel["threads"], _worker_device(parcel["gpus"]), collective, progress)
    except AnyloomError as error:
        write_atomic(ctx.work / "error.json", json.dumps(str(error)))
        if collective.world > 1:
            raise  # the other ranks wait for this one: let Ray stop them
        return
    if collective.rank == 0:
        write_atomic(ctx.work / "result.json", json.dumps(result))


def _run_on_ray(ctx: StepContext[TrainConfig], workers: int, threads: int) -> dict[str, Any]:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.training.ranks import RanksConfig

    class Trainer(TorchTrainer):
        """Without Ray Train's detached janitor of placement groups: it asks Ray's dashboard whether the run is alive, so that on a cluster without one it
        stays for ever after a run that was cancelled or killed. The group is not detached and ends with the run anyway."""

        def _create_default_callbacks(self) -> list[Any]:
            found = super()._create_default_callbacks()  # type: ignore[misc]  # Ray chooses the class behind TorchTrainer when it is imported
            return [one for one in found if type(one).__name__ != "PlacementGroupCleanerCallback"]

    for leftover in ("ray", "ranks", "error.json", "result.json", "progress.json"):
        path = ctx.work / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (ctx.work / "ranks").mkdir(parents=True)
    gpus = ctx.resources.gpus
    parcel = {"ctx": replace(ctx, progress=_silent), "threads": threads, "gpus": gpus}
    # One rank on this machine runs here, which is Ray Train's local mode: another process would only import everything again.
    here = workers == 1 and not gpus and not cluster_is_given()
    each = {"CPU": threads, **({"GPU": 1} if gpus else {})}
    trainer = Trainer(
        _worker,
        train_loop_config=parcel,
        torch_config=RanksConfig(meet=str(ctx.work / "ranks")),
        scaling_config=ScalingConfig(num_workers=0 if here else workers, use_gpu=gpus > 0, resources_per_worker=each),
        run_config=RunConfig(name=ctx.name, storage_path=str(ctx.work / "ray"), failure_config=FailureConfig(max_failures=MAX_FAILURES)),
    )
    failure = None
    try:
        with _relaying(ctx.work / "progress.json", ctx.progress):
            trainer.fit()
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        failure = error
    if (ctx.work / "error.json").exists():
        raise AnyloomError(json.loads((ctx.work / "error.json").read_text()))
    if failure is not None:
        cause = str(failure).strip().splitlines()
        raise AnyloomError(f"{ctx.name}: the training workers failed {MAX_FAILURES + 1} times: {cause[-1] if cause else failure!r}") from failure
    result: dict[str, Any] = json.loads((ctx.work / "result.json").read_text())
    return result


def run(ctx: StepContext[TrainConfig]) -> dict[str, Any]:
    """Entry of the step."""
    if not ctx.resources.use_ray:
        return _train(ctx, max(1, ctx.resources.threads), device_for(ctx.resources.gpus), Collective(), ctx.progress)
    workers = max(1, ctx.resources.gpus or ctx.resources.workers)
    return _run_on_ray(ctx, workers, max(1, ctx.resources.threads // workers))
