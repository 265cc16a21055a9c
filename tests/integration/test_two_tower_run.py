"""tiny_two_tower from lists to search, in this process: what is shared with tiny, what a second run does, what the numbers are made of."""

import json

import pyarrow.parquet as pq
import pytest

from flows.cli.search import search
from flows.running.display import Display
from flows.running.run import recipe_steps, run_targets
from infra.artifact import all_records, find, verify
from infra.plan import DONE, plan
from infra.settings import Settings

pytestmark = pytest.mark.timeout(900)


def materialize(root, recipe="tiny_two_tower", **options):
    settings = Settings(root=root, threads=1, use_ray=False, use_prefect=False)
    return run_targets(recipe, settings, display=Display(), **options)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("two_tower") / "runs"
    return root, materialize(root)


def test_the_recipe_runs_and_a_second_run_does_nothing(ran):
    root, statuses = ran
    assert set(statuses.values()) == {"executed"} and {"embed_text", "two_tower", "eval_retrieval", "overlap", "targets"} <= set(statuses)
    assert not {"stage1", "export", "weights_lm", "history"} & set(statuses)
    for path, record in all_records(root):
        verify(path, record)
    assert set(materialize(root).values()) == {"reused"}
    assert all(row.status == DONE for row in plan(recipe_steps("tiny_two_tower", {}).values(), root))


def test_everything_before_the_towers_is_shared_with_tiny(ran):
    root, statuses = ran
    rows = {row.step.name: row.status for row in plan(recipe_steps("tiny", {}).values(), root)}
    shared = set(statuses) - {"embed_text", "two_tower", "eval_retrieval"}
    assert {name for name, status in rows.items() if status == DONE} == shared and len(shared) > 15


def test_a_changed_rate_trains_the_towers_again_and_nothing_before(ran, tmp_path):
    root, _ = ran
    rows = plan(recipe_steps("tiny_two_tower", {"two_tower.stage.lr": 1e-4}).values(), root)
    assert {row.step.name for row in rows if row.status != DONE} == {"two_tower", "eval_retrieval"}


def test_numbers_carry_counts_chance_and_intervals(ran):
    root, _ = ran
    path, record = find(root, "eval_retrieval")
    metrics = {(row["subgroup"], row["condition"], row["metric"]): row for row in pq.read_table(path / "metrics.parquet").to_pylist()}
    samples = pq.read_table(path / "samples.parquet").to_pylist()
    for modality in ("image", "video", "audio"):
        for direction in ("media_to_text", "text_to_media"):
            mine = [row for row in samples if (row["modality"], row["direction"]) == (modality, direction)]
            row, floor = (metrics[modality, name, "recall_at_5"] for name in (direction, f"{direction} chance"))
            assert row["n"] == len(mine) > 1 and row["value"] == pytest.approx(sum(s["rank"] <= 5 for s in mine) / len(mine))
            assert row["ci_lo"] <= row["value"] <= row["ci_hi"] and 0 < floor["value"] <= 1 and floor["kind"] == "floor"
        assert record.result[modality]["media_to_text"]["recall_at_1"]["n"] > 0
    assert metrics["image", "neighbours", "category_in_nearest_5"]["n"] > 10
    losses = pq.read_table(find(root, "two_tower")[0] / "losses.parquet").to_pydict()
    assert losses["step"][-1] == 7 and losses["loss"][-1] < losses["loss"][0] and "loss_audio" in losses
    assert json.loads((find(root, "two_tower")[0] / "stage.json").read_text())["stage"] == "two_tower"


def test_search_writes_a_sheet_and_a_table(ran, tmp_path, capsys):
    root, _ = ran
    hits = search(root, "tiny_two_tower", "a red circle", 7, tmp_path / "sheet.html")
    printed = capsys.readouterr().out
    assert len(hits) == 7 == len({(hit.key, hit.modality) for hit in hits})
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    page = (tmp_path / "sheet.html").read_text()
    assert all(hit.key in page and hit.key in printed for hit in hits) and page.count('class="card"') == 7 and "a red circle" in page
    again = search(root, "tiny_two_tower", "a red circle", 10_000, tmp_path / "all.html")
    assert [hit.key for hit in again[:7]] == [hit.key for hit in hits] and {hit.modality for hit in again} == {"image", "video", "audio"}
    assert len({hit.data for hit in again}) == len(again)  # the same bytes count once
