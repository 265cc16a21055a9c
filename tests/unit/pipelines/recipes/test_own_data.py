"""Datasets of the user's own: added from the command line, in the stages of their kind, divided by a held-out share."""

from dataclasses import replace

import pytest

from flows.cli.main import build_parser, main
from flows.cli.options import given_lists
from flows.running.run import made_recipe, recipe_steps
from infra.step import AnyloomError
from pipelines.dag.build import build
from pipelines.dag.given import left_out
from pipelines.readers.rows import Media, Row
from pipelines.recipes import get_recipe
from pipelines.recipes.recipe import Dataset
from pipelines.shards.manifest import is_heldout


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "photos.tsv").write_text("".join(f"photo {n}\tphoto{n}.png\n" for n in range(40)))
    (tmp_path / "chats.json").write_text("[]")
    return {"photos": f"cc3m:{tmp_path / 'photos.tsv'}", "chats": f"instruct:{tmp_path / 'chats.json'}"}


def test_the_starter_learns_from_the_lists_that_are_given(lists):
    steps = recipe_steps("starter", {}, lists)
    assert steps["stage1"].config.stage.mixture == (("photos", 1.0),) and steps["stage3"].config.stage.mixture == (("chats", 1.0),)
    assert set(steps) >= {"shards_cc3m", "shards_instruct", "embed_image", "export"} and not {"lists", "eval_vqa"} & set(steps)
    assert "eval_captions" not in steps


def test_a_stage_without_lists_is_left_out_and_said(lists):
    photos, chats = ({name: lists[name]} for name in lists)
    assert "stage3" not in recipe_steps("starter", {}, photos) and left_out(made_recipe("starter", {}, photos)) == [
        "stage3, until a list of instructions is given (--data)"
    ]
    assert recipe_steps("starter", {}, chats)["stage1"].config.stage.mixture == (("chats", 1.0),)  # as LLaVA's first stage
    with pytest.raises(AnyloomError, match=r"recipe starter is trained on lists of your own, and has none: give captions with --data NAME=cc3m:FILE"):
        recipe_steps("starter", {})


def test_a_list_added_to_a_recipe_joins_the_stages_of_its_kind(lists):
    before, after = recipe_steps("tiny", {}), recipe_steps("tiny", {}, lists)
    for stage, added in (("stage1", ("photos",)), ("stage2", ("photos",)), ("stage3", ("photos", "chats"))):
        old, new = (steps[stage].config.stage.mixture for steps in (before, after))
        assert new[: len(old)] == old and new[len(old) :] == tuple((name, 1.0) for name in added), stage
    assert after["manifest_cc3m"].sources["photos"].name == "photos.tsv"
    weighted = recipe_steps("tiny", {"stage3.mixture": [["chats", 1.0]], "datasets.photos.split": "heldout"}, lists)
    assert weighted["stage3"].config.stage.mixture == (("chats", 1.0),)


def test_a_dataset_of_the_recipe_is_replaced_whatever_its_format(lists):
    steps = recipe_steps("tiny", {}, {"clips_train": lists["photos"]})
    assert steps["manifest_cc3m"].sources == {"clips_train": steps["manifest_cc3m"].sources["clips_train"]}
    assert "clips_train" not in {spec.name for spec in steps["manifest_webvid"].config.datasets}


def test_a_held_out_share_is_a_dataset_of_its_own_and_brings_its_evaluation(lists):
    steps = recipe_steps("starter", {"datasets.photos.heldout": 0.25}, lists)
    train, heldout = steps["manifest_cc3m"].config.datasets
    assert (train.name, train.part, train.split, heldout.name, heldout.part, heldout.split) == (
        *("photos", "train", "train"),
        *("photos_heldout", "heldout", "heldout"),
    )
    assert set(steps["manifest_cc3m"].sources) == {"photos", "photos_heldout"}
    assert steps["eval_captions"].config.datasets == (("image", "photos_heldout"),) and {"history", "report"} <= set(steps)


def test_rows_about_one_medium_are_on_one_side_wherever_they_stand():
    rows = [Row(media=(Media(role="input", modality="image", uri=f"{n % 500}.png"),), texts=(f"text {n}",)) for n in range(1000)]
    sides = [is_heldout(row, 0.2) for row in rows]
    assert sides[:500] == sides[500:] and 60 <= sum(sides[:500]) <= 140
    assert not is_heldout(Row(refused=("bad_record", "line 1")), 0.99) and sum(is_heldout(Row(texts=(str(n),)), 0.5) for n in range(100)) in range(30, 70)
    assert all(is_heldout(row, 0.4) for row, side in zip(rows, sides, strict=True) if side)  # a larger share holds the smaller one


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"datasets.photos.heldout": 1.0}, r"datasets\.photos\.heldout is 1\.0: it is a share"),
        ({"datasets.photos.heldout": 0.1, "datasets.photos.split": "test"}, r"but its split is test; only a training list is divided"),
        ({"datasets.photo.heldout": 0.1}, r"no such key; close ones: datasets\.photos\.heldout"),
        ({"datasets.photos.weight": "much"}, r"expected float"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_one_line(lists, settings, problem):
    with pytest.raises(AnyloomError, match=problem):
        recipe_steps("starter", settings, lists)


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ({"format": "cc3mm"}, r"recipe mine: datasets\.photos\.format is 'cc3mm'; it is one of cc3m, webvid, audiocaps, instruct"),
        ({"split": "dev"}, r"recipe mine: datasets\.photos\.split is 'dev'; it is one of train, heldout, test"),
        ({"name": "my photos"}, r"recipe mine: dataset 'my photos': use letters, digits and _ only"),
    ],
)
def test_a_typo_in_a_dataset_is_one_line_that_says_what_there_is(dataset, problem):
    mine = Dataset(**({"name": "photos", "format": "cc3m", "list": "/none.tsv"} | dataset))
    with pytest.raises(AnyloomError, match=problem):
        build(replace(get_recipe("starter"), name="mine", datasets=(mine,)))


@pytest.mark.parametrize("command", ["run", "plan", "report", "sql"])
def test_a_root_that_is_a_file_is_one_line(command, tmp_path, capsys):
    (tmp_path / "photos.tsv").write_text("a cat\tcat.png\n")
    words = ["select 1"] if command == "sql" else ["--recipe", "tiny"]
    for root in (tmp_path / "photos.tsv", tmp_path / "photos.tsv" / "runs"):
        assert main([command, *words, "--root", str(root)]) == 1
        out, error = capsys.readouterr()
        assert out == "" and error.startswith(f"anyloom: --root {root}: {tmp_path}/photos.tsv is a file; give a directory") and error.count("\n") == 1


@pytest.mark.parametrize("given", ["photos.tsv", "photos=photos.tsv", "photos=coco:photos.tsv", "photos=cc3m:", "my photos=cc3m:photos.tsv"])
def test_data_takes_name_format_and_file(given, capsys):
    assert main(["plan", "--recipe", "starter", "--data", given]) == 1
    error = capsys.readouterr().err
    assert "NAME=FORMAT:FILE" in error and error.count("\n") == 1


def test_lists_are_absolute_and_given_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = build_parser()
    args = parser.parse_args(["plan", "--data", "a=cc3m:a.tsv", "--list", "b=b.tsv"])
    assert given_lists(args) == {"a": f"cc3m:{tmp_path}/a.tsv", "b": f"{tmp_path}/b.tsv"}
    with pytest.raises(AnyloomError, match="a is given with --list too"):
        given_lists(parser.parse_args(["plan", "--data", "a=cc3m:a.tsv", "--list", "a=b.tsv"]))
