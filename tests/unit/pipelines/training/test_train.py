"""Training at toy size: what a stage changes, kill and resume, world size, and stage 2 from cached states."""

import dataclasses
import threading
from itertools import pairwise

import pytest
import torch
from toy_model import HUES, SPEC, STAGE1, STAGE2, STAGE3, Targets, asked, build, captioned, chat_data

from infra.step import AnyloomError
from mmcore.chat.special_tokens import TokenTable
from mmcore.lm.lora import attach_lora
from mmcore.training.batching import collate
from mmcore.training.checkpoint import load_latest
from mmcore.training.losses import alignment
from mmcore.training.optimizer import FlatAdamW
from mmcore.training.signals import NEGATIVES, SignalSide, compute_states, signal_row
from mmcore.training.stages import rate_shares, saved_tensors, select_trainable
from mmcore.training.states import SignalData
from mmcore.training.targets import fit_targets, padded_targets
from mmcore.types import IGNORE
from pipelines.training.loop import Collective, run_stage, stage_rate


class MemoryStates:
    """StateSet in memory."""

    def requests(self, modality, caption):
        return 1

    def __init__(self, model, captions):
        states, lse = compute_states(model, "image", captions)
        from mmcore.training.signals import caption_key

        self._at = {caption_key("image", text): i for i, text in enumerate(captions)}
        self._states, self._lse, self.table = states, lse, TokenTable(model.lm.table.base, SPEC.tokens)
        self._rows = {name: getattr(model.lm, name).detach().clone() for name in ("new_input_rows", "new_head_rows")}

    def gather(self, keys):
        index = [self._at[key] for key in keys]
        return self._states[index], self._lse[index]

    def rows(self):
        return {name: value.clone() for name, value in self._rows.items()}


def signal_parts(model):
    captions = sorted({text for sample in captioned() for text in sample.texts})
    states = MemoryStates(model, captions)
    side = SignalSide(SPEC, states)
    return side, SignalData(STAGE2, side, {"pictures": captioned()}, {"pictures": "image"}, states, {"image": Targets()})


def prepared(config):
    """(model, data) at the start of a stage."""
    model = build(lora=config.stage == "stage2")
    if config.stage == "stage2":
        return signal_parts(model)
    if config.stage == "stage3":
        attach_lora(model.lm.base, SPEC.lora, 0)
    return model, chat_data(config, model)


def snapshot(model):
    return {name: value.detach().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize(
    ("config", "starts"),
    [
        (STAGE1, ("input_projectors.",)),
        (STAGE2, ("output_projectors.", "lm.new_head_rows")),
        (STAGE3, ("lm.base.", "lm.new_input_rows", "lm.new_head_rows", "input_projectors.")),
        (dataclasses.replace(STAGE3, train_projectors=False), ("lm.base.", "lm.new_input_rows", "lm.new_head_rows")),
    ],
)
def test_a_stage_changes_exactly_its_tensors(config, starts, tmp_path):
    model, data = prepared(config)
    before = snapshot(model)
    trained, log, _ = run_stage(config, model, data, tmp_path)
    changed = {name for name, value in snapshot(model).items() if not torch.equal(value, before[name])}
    assert changed == set(trained)
    assert {next(start for start in starts if name.startswith(start)) for name in changed} == set(starts)
    assert all(".lora_" in name for name in changed if name.startswith("lm.base."))
    assert log.rows[-1][1] < log.rows[0][1]
    saved = saved_tensors(model, config, trained)
    assert {name for name in saved if name in dict(model.named_parameters())} == {name for name in trained if ".lora_" not in name}


@pytest.mark.parametrize("config", [STAGE1, STAGE2, STAGE3], ids=lambda config: config.stage)
@pytest.mark.parametrize("kill_at", [1, 3, 4])
def test_resume_equals_uninterrupted_bit_for_bit(config, kill_at, tmp_path):
    model, data = prepared(config)
    whole, whole_log, _ = run_stage(config, model, data, tmp_path / "whole")

    class Killed(Exception):
        pass

    def bomb(done, total, note=""):
        if done == kill_at + 1:
            raise Killed

    model, data = prepared(config)
    with pytest.raises(Killed):
        run_stage(config, model, data, tmp_path / "killed", progress=bomb)
    torch.manual_seed(999)
    model, data = prepared(config)
    seen = []
    resumed, log, _ = run_stage(config, model, data, tmp_path / "killed", progress=lambda done, total, note="": seen.append(done))
    last = (kill_at + 1) // 2 * 2
    assert seen[:2] == [last, last + 1]  # says where it continues: at the last checkpoint, not at the start
    assert log.rows == whole_log.rows
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_resume_refuses_other_data(tmp_path):
    model, data = prepared(STAGE1)
    run_stage(dataclasses.replace(STAGE1, steps=5), model, data, tmp_path)
    assert load_latest(tmp_path / "checkpoints").step == 4
    model, data = prepared(dataclasses.replace(STAGE1, batch=4))
    with pytest.raises(AnyloomError, match="made from other data"):
        run_stage(STAGE1, model, data, tmp_path)
    model, data = prepared(dataclasses.replace(STAGE1, steps=5))
    data.part_names = (*data.part_names, "one_more")
    with pytest.raises(AnyloomError, match="made from other data or by another version"):
        run_stage(STAGE1, model, data, tmp_path)


class ThreadCollective(Collective):
    """Ranks as threads of this process."""

    def __init__(self, rank, world, shared):
        self.rank, self.world, self._barrier, self._slots = rank, world, *shared

    def sum_(self, tensor):
        self._slots[self.rank] = tensor.clone()
        self._barrier.wait()
        total = torch.stack([self._slots[rank] for rank in range(self.world)]).sum(0)
        self._barrier.wait()
        tensor.copy_(total)

    def barrier(self):
        self._barrier.wait()


@pytest.mark.parametrize("world", [2, 7])
def test_world_size_changes_rounding_only(world, tmp_path):
    model, data = prepared(STAGE3)
    alone, alone_log, _ = run_stage(STAGE3, model, data, tmp_path / "alone")
    shared, results = (threading.Barrier(world), [None] * world), [None] * world
    ranks = [prepared(STAGE3) for _ in range(world)]  # built here: seeding is global to the process

    def rank_main(rank):
        model, data = ranks[rank]
        results[rank] = run_stage(STAGE3, model, data, tmp_path / "many", ThreadCollective(rank, world, shared))

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for trained, log, _ in results:
        for name in alone:
            assert torch.allclose(trained[name], alone[name], atol=2e-4)
            assert torch.equal(trained[name], results[0][0][name])
        assert [row[3] for row in log.rows] == pytest.approx([row[3] for row in alone_log.rows])
        assert [row[1] for row in log.rows] == pytest.approx([row[1] for row in alone_log.rows], rel=1e-3)


def test_flat_adamw_is_torch_adamw():
    config = dataclasses.replace(STAGE1, weight_decay=0.1, clip=0.0)
    parameters = {
        name: torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))) for name, shape in (("a", (3, 4)), ("bb", (5,)))
    }
    copies = {name: torch.nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
    reference = torch.optim.AdamW(copies.values(), lr=config.lr, betas=config.betas, weight_decay=0.1)
    flat = FlatAdamW(parameters, config)
    for step in range(5):
        for group in (parameters, copies):
            sum((value * value).sum() * (i + 1) for i, value in enumerate(group.values())).backward()
        for value in copies.values():
            value.grad.div_(2.0)
        flat.step(config.lr * (step + 1), 2.0)
        reference.param_groups[0]["lr"] = config.lr * (step + 1)
        reference.step()
        reference.zero_grad()
    assert all(torch.allclose(parameters[name], copies[name], atol=1e-6) for name in copies)


def test_a_rate_of_its_own_is_a_parameter_group_of_torch():
    config = dataclasses.replace(STAGE1, weight_decay=0.1, clip=0.0)
    parameters = {name: torch.nn.Parameter(torch.linspace(-1, 1, size)) for name, size in (("a", 7), ("b", 4), ("c", 3))}
    copies = {name: torch.nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
    groups = [{"params": [copies["a"], copies["c"]], "lr": 1e-2}, {"params": [copies["b"]], "lr": 1e-3}]
    reference = torch.optim.AdamW(groups, betas=config.betas, weight_decay=0.1)
    flat = FlatAdamW(parameters, config, {"b": 0.1})
    for _ in range(4):
        for values in (parameters, copies):
            sum((value**3).sum() for value in values.values()).backward()
        flat.step(1e-2, 1.0)
        reference.step()
        reference.zero_grad()
    assert all(torch.allclose(parameters[name], copies[name], atol=1e-6) for name in copies)


def test_a_continued_optimizer_goes_on_as_the_uninterrupted_one_and_keeps_two_flat_moments():
    def updated(steps, saved=None):
        parameters = {name: torch.nn.Parameter(torch.linspace(-1, 1, size)) for name, size in (("a", 7), ("b", 4), ("c", 3))}
        flat = FlatAdamW(parameters, STAGE1, {"b": 0.1})
        if saved is not None:
            flat.load(*saved)
        for _ in range(steps):
            sum((value**3).sum() for value in parameters.values()).backward()
            flat.step(1e-2, 1.0)
        return {name: value.detach().clone() for name, value in parameters.items()}, flat.state()

    half = updated(3)
    assert {name: tuple(value.shape) for name, value in half[1].items()} == {"step": (), "exp_avg": (14,), "exp_avg_sq": (14,)}
    whole, resumed = updated(5), updated(2, half)
    assert all(torch.equal(whole[i][name], resumed[i][name]) for i in (0, 1) for name in whole[i])


def test_only_the_input_projectors_of_stage_3_have_a_rate_of_their_own():
    names = ["input_projectors.image.proj.weight", "lm.base.x.lora_A.default.weight", "lm.new_head_rows"]
    stage3 = dataclasses.replace(STAGE1, stage="stage3", lr=2e-4, projector_lr=2e-5)
    assert rate_shares(stage3, names) == {names[0]: pytest.approx(0.1)}
    assert rate_shares(dataclasses.replace(stage3, projector_lr=0.0), names) == {}
    assert rate_shares(dataclasses.replace(stage3, stage="stage1"), names[:1]) == {}


def test_learning_rate_schedule():
    config = dataclasses.replace(STAGE1, steps=11, warmup_steps=2, lr=1.0, final_lr=0.1)
    rates = [stage_rate(config, step) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[2:]))
    assert [a - b for a, b in pairwise(rates[2:])] == pytest.approx([0.9 / 8] * 8)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_schedule_is_half_a_wave_from_the_peak_to_the_end(final):
    """torch's CosineAnnealingLR over the steps after the warm-up."""
    config = dataclasses.replace(STAGE1, steps=11, warmup_steps=2, lr=1.0, final_lr=final, schedule="cosine")
    rates = [stage_rate(config, step) for step in range(11)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=final)
    expected = []
    for _ in range(9):
        expected.append(annealing.get_last_lr()[0])
        optimizer.step()
        annealing.step()
    assert rates[:2] == [0.5, 1.0] and rates[2:] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"stage1\.schedule 'step' is unknown: use linear or cosine"):
        stage_rate(dataclasses.replace(config, schedule="step"), 0)


def test_stage3_rows_carry_caption_turn_weights_and_groups():
    model = build()
    data = chat_data(STAGE3, model)
    row = data.row(asked()[0], 0, 3)
    text = model.chat.tokenizer.decode([i for i in row.ids if i < model.lm.table.base])
    assert "Describe the image." in text and captioned()[0].texts[0] in text and row.segments.max() == 2
    assert "Describe" not in model.chat.tokenizer.decode([i for i in data.row(asked()[6], 0, 3).ids if i < model.lm.table.base])  # no caption is known
    assert data.weights["asked"]["is it red?", "yes"] == pytest.approx(0.5 / (3 / 7)) and data.weights["asked"]["is it blue?", "no"] == 0.5
    names = {
        data.part_names[int(g)] for row in (data.row(asked()[0], v, 3) for v in range(5)) for g, t in zip(row.groups, row.targets, strict=True) if t != IGNORE
    }
    assert names == {"caption_turn", "asked", "asked_yes_no"}
    assert all(hue in HUES for hue in HUES)


def test_cached_states_give_the_loss_and_gradient_of_the_full_model():
    """Stage 2 without the LM: against a plain softmax over the whole vocabulary through the whole model."""
    model = build(lora=True)
    side, data = signal_parts(model)
    captions = [sample.texts[0] for sample in captioned(4)]
    cached = data.loss(side, "image", captions)
    cached.total.backward()

    projector = model.output_projectors["image"]
    projector.load_state_dict(side.projector("image").state_dict())
    model.requires_grad_(False)
    online = [*projector.parameters(), model.lm.new_head_rows]
    for parameter in online:
        parameter.requires_grad_(True)
    rows = [signal_row(model.chat, "image", caption) for caption in captions]
    hidden = model(collate([row for row, _ in rows], {}))
    targets = padded_targets(Targets(), captions, 5)
    _, _, cost = fit_targets(Targets(), [text for sample in captioned() for text in sample.texts], 5)
    total = torch.zeros(())
    for b, (row, positions) in enumerate(rows):
        log_p = model.lm.logits(hidden[b]).log_softmax(-1)
        block = model.lm.table.block("image")
        start = positions[0]
        assert row.ids[start + 1 : start + 5].tolist() == list(block)
        nll = [-log_p[start + i, token] for i, token in enumerate(block)]
        negatives = [start + 4, *positions[-NEGATIVES:]]
        nll += [-log_p[place, : model.lm.table.base].logsumexp(0) for place in negatives]
        conditioning = model.conditioning("image", hidden[b, start + 1 : start + 5][None])
        total = total + torch.stack(nll).mean() + alignment(conditioning, targets[b : b + 1])[0] / cost
    total.backward()
    assert float(cached.total) == pytest.approx(float(total), rel=1e-5)
    own = dict(side.named_parameters())
    assert torch.allclose(own["lm.new_head_rows"].grad, model.lm.new_head_rows.grad, atol=1e-5)
    for name, parameter in projector.named_parameters():
        assert torch.allclose(own[f"output_projectors.image.{name}"].grad, parameter.grad, atol=1e-5), name
    assert set(own) == {f"output_projectors.image.{name}" for name, _ in projector.named_parameters()} | {"lm.new_head_rows"}


def test_untrained_alignment_is_the_mean_predictor():
    side, data = signal_parts(build(lora=True))
    parts = sum(loss.parts for step in range(4) for loss in data.losses(side, step, 0, 1))
    means = dict(zip(data.part_names, (parts[:, 0] / parts[:, 1]).tolist(), strict=True))
    assert means["alignment"] == pytest.approx(means["mean_predictor"], rel=0.02)
    assert means["mean_predictor"] == pytest.approx(1.0, rel=0.3)


def test_nothing_to_train_and_wrong_stage():
    model = build()
    with pytest.raises(ValueError, match="stage 'stage9' is unknown"):
        select_trainable(model, dataclasses.replace(STAGE1, stage="stage9"))
    with pytest.raises(ValueError, match="would train nothing"):
        select_trainable(torch.nn.Linear(2, 2), STAGE1)


def broken(data, at):
    """`data` whose features of the samples of step `at` hold a value that is not finite."""
    keys, gather = set(data.keys(at)) - {key for step in range(at) for key in data.keys(step)}, data.features["image"].gather

    class Broken(type(data.features["image"])):
        def gather(self, asked):
            features, lengths = gather(asked)
            features[[key in keys for key in asked]] = float("nan")
            return features, lengths

    data.features["image"] = Broken()
    return keys


@pytest.mark.parametrize("at", [0, 1])
def test_a_loss_that_is_not_finite_names_the_step_and_the_samples(at, tmp_path):
    model, data = prepared(STAGE1)
    keys = broken(data, at)
    assert keys
    with pytest.raises(ValueError, match=rf"^step {at}: the loss is nan; the samples of the batch are .*; a lower learning rate") as caught:
        run_stage(STAGE1, model, data, tmp_path)
    assert all(key in str(caught.value) for key in data.keys(at)) and set(data.keys(at)) >= keys


def test_a_gradient_that_is_not_finite_names_the_step_and_the_samples(tmp_path):
    model, data = prepared(STAGE1)
    next(iter(model.input_projectors["image"].parameters())).requires_grad_(True).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ValueError, match=r"^step 0: the gradient is not finite \(of \d+ of \d+ parameters, .* first\); the samples of the batch are pictures-"):
        run_stage(STAGE1, model, data, tmp_path)


@pytest.mark.parametrize("config", [STAGE1, STAGE2, STAGE3], ids=lambda config: config.stage)
def test_the_keys_of_a_step_are_those_that_every_rank_sees_together(config, tmp_path):
    _, data = prepared(config)
    for step in range(config.steps):
        keys = data.keys(step)
        assert len(keys) == config.batch and all(key.partition("-")[0] in dict(config.mixture) for key in keys)


def test_what_nobody_foresaw_tells_of_the_step_and_the_samples(tmp_path):
    model, data = prepared(STAGE1)

    class Lost(type(data.features["image"])):
        def gather(self, keys):
            raise KeyError("gone")

    data.features["image"] = Lost()
    with pytest.raises(KeyError) as caught:
        run_stage(STAGE1, model, data, tmp_path)
    assert caught.value.__notes__ == [f"at training step 0, samples {', '.join(data.keys(0))}"]
