"""The eval_drift step: what instruction tuning (stage 3) does to the output side that stage 2 trained before it.

Owns the comparison of held-out captions before and after: the alignment error of the conditioning, and the cross-entropy of the signal tokens in the
plainest request. Input: `states` and `aligned` (the stage 2 looked at, before), the stages up to stage 3 (after), weights_lm, caption targets and
shards. Output: samples.parquet and metrics.parquet.

Stage 2 trains on hidden states that later stages move; the output projectors stay where they were. Before: from the cached states that stage 2 was
trained on. After: the same captions through the model as it is after stage 3. Captions whose text training has are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals.captions.alignment import caption_texts, scored_captions
from evals.config import AlignmentEvalConfig, DriftEvalConfig
from evals.statistics.intervals import mean_interval, paired_interval
from evals.tables import DRIFT_SAMPLES, METRICS, metric_row, rounded, write_table
from infra.step import StepContext
from mmcore.chat.asking import plain
from mmcore.config import output_spec
from mmcore.model.any_model import TENSORS, load_model, load_tensors
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.training.losses import alignment, signal_nll
from mmcore.training.signals import SignalSide, StateSet, caption_key, compute_states
from mmcore.training.targets import fit_targets, padded_targets

if TYPE_CHECKING:
    import torch

Signals = Callable[[Sequence[str]], tuple["torch.Tensor", "torch.Tensor"]]
"""captions -> (conditioning_BQC, cross-entropy of each signal token [B, S])."""


def run(ctx: StepContext[DriftEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. With fewer than two held-out captions the tables are empty. Returns the means and their differences."""
    config = ctx.config
    train, heldout = (caption_texts(ctx, names) for names in (config.alignment.train_datasets, config.alignment.heldout_datasets))
    known, captions, lines = scored_captions(ctx, config.alignment, train, heldout)
    samples = _samples(ctx, known, captions) if len(captions) >= 2 and known else []
    metrics = drift_metrics(config.alignment, samples)
    write_table(ctx.output / "samples.parquet", samples, DRIFT_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    shown = {f"{row['metric']} {row['condition']}": rounded(row) for row in metrics}
    left = {"left_out": lines} if lines else {}
    return {"captions": len(captions), "seen_in_training": len(heldout & train), "stages": list(config.stages), **left, **shown}


def _samples(ctx: StepContext[DriftEvalConfig], train: list[str], captions: list[str]) -> list[dict[str, Any]]:
    """Rows of DRIFT_SAMPLES."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config.alignment
    targets, queries = EmbeddingSet(ctx.inputs["targets"].path, ctx.stores), output_spec(config.model, config.modality).queries
    mean_QC, _, _ = fit_targets(targets, train, queries)
    sides = {"before": _before(ctx), "after": _after(ctx)}
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for start in range(0, len(captions), config.batch):
            batch = captions[start : start + config.batch]
            target_BQC = padded_targets(targets, batch, queries)
            found = {"error_mean": alignment(mean_QC.expand_as(target_BQC), target_BQC)}
            for when, signals in sides.items():
                conditioning_BQC, nll_BS = signals(batch)
                found |= {f"error_{when}": alignment(conditioning_BQC, target_BQC), f"nll_{when}": nll_BS.mean(1)}
            columns = {name: values.tolist() for name, values in found.items()}
            rows += [
                {"key": f"{config.modality}-{start + i:06d}", "caption": caption, **{name: values[i] for name, values in columns.items()}}
                for i, caption in enumerate(batch)
            ]
            ctx.progress(len(rows), len(captions), "held-out captions before and after stage 3")
    return rows


def _before(ctx: StepContext[DriftEvalConfig]) -> Signals:
    """From the cached states, with the projectors and rows that stage 2 left."""

    config = ctx.config.alignment
    states = StateSet(ctx.inputs["states"].path)
    side = SignalSide(config.model, states)
    load_tensors(side, ctx.inputs["aligned"].path / TENSORS)

    def signals(captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        states_BPD, lse_BP = states.gather([caption_key(config.modality, caption) for caption in captions])
        nll_BS, _ = signal_nll(states_BPD, lse_BP, side.lm.new_head_rows, side.block(config.modality))
        return side.conditioning(config.modality, states_BPD), nll_BS

    return signals


def _after(ctx: StepContext[DriftEvalConfig]) -> Signals:
    """Through the model after stage 3, with the rows that stage 3 left."""

    config = ctx.config.alignment
    model = load_model(config.model, ctx.inputs["weights_lm"].path / "lm", tuple(ctx.inputs[name].path for name in ctx.config.stages)).eval()
    table = model.lm.table
    ids = table.block(config.modality)
    block = range(ids[0] - table.base, ids[-1] + 1 - table.base)

    def signals(captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        states_BPD, lse_BP = compute_states(model, config.modality, captions, [plain(config.modality, caption, restate=config.restate) for caption in captions])
        nll_BS, _ = signal_nll(states_BPD, lse_BP, model.lm.new_head_rows, block)
        return model.conditioning(config.modality, states_BPD[:, 1 : 1 + len(ids)]), nll_BS

    return signals


def drift_metrics(config: AlignmentEvalConfig, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of METRICS, each caption once, paired: alignment_error before, after, of the mean predictor, what each side gains over it, and the drift
    (after - before: above 0 stage 3 made it worse); signal_nll (mean over the block's tokens, in nats) before, after and its drift. [] without samples."""
    if not samples:
        return []
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    clusters = [sample["caption"] for sample in samples]
    at = {name: [sample[name] for sample in samples] for name in ("error_before", "error_after", "error_mean", "nll_before", "nll_after")}
    rows = []
    for metric, name in (("alignment_error", "error"), ("signal_nll", "nll")):
        named = {"metric": metric, "subgroup": config.modality}
        for when in ("before", "after"):
            rows.append(metric_row(mean_interval(at[f"{name}_{when}"], clusters, **options), condition=when, kind="score", **named))
        moved = paired_interval(at[f"{name}_after"], at[f"{name}_before"], clusters, **options)
        rows.append(metric_row(moved, condition="after - before", kind="difference", **named))
    named = {"metric": "alignment_error", "subgroup": config.modality}
    rows.append(metric_row(mean_interval(at["error_mean"], clusters, **options), condition="mean_predictor", kind="floor", **named))
    for when in ("before", "after"):
        gain = paired_interval(at["error_mean"], at[f"error_{when}"], clusters, **options)
        rows.append(metric_row(gain, condition=f"mean_predictor - {when}", kind="difference", **named))
    return rows
