"""The history's page and its summary: what is put beside what, what is shown of it, and that text from data stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from toy_history import TASK, append, rows
from toy_page import HOSTILE, QUESTIONS, artifact, drawing, toy_root

from evals.history import database as history
from evals.history.reader import History, short_seeds
from evals.history.records import append_comparisons
from evals.pages.history import changes as report_changes
from evals.pages.history import diff as report_diff
from evals.pages.history.charts import Point, Trend, trend_chart, whisker
from evals.pages.history.gallery import Made, drawn, made_in
from evals.pages.history.history import SECTIONS, write_history_page
from evals.pages.history.media import SIDE, Room, images_of, small
from evals.pages.history.names import main_metric
from evals.pages.history.numbers import axis_of, interval, moved, number_text, p_text, scale_of
from evals.pages.history.summary import plain
from evals.pages.history.trends import of_all
from evals.pages.page import STYLE
from infra.step import AnyloomError

VOID = ("meta", "img", "br", "line", "circle", "polyline", "polygon", "rect")


@pytest.fixture(scope="module")
def db(tmp_path_factory) -> Path:
    return toy_root(tmp_path_factory.mktemp("toy") / "runs")


@pytest.fixture(scope="module")
def html(db, tmp_path_factory) -> str:
    return write_history_page(db, out=tmp_path_factory.mktemp("page") / "history.html").page.read_text()


@pytest.fixture
def reader(db):
    with history.opened(db) as connection:
        yield History(connection)


class _Reader(HTMLParser):
    """Elements in order; fails on unclosed or crossed ones."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_every_section_and_loads_nothing(html):
    found = _Reader(html).seen
    assert [attrs["id"] for tag, attrs in found if tag == "section"] == list(SECTIONS)
    assert [attrs["href"] for tag, attrs in found if tag == "a"] == ["#leaderboard", *(f"#{name}" for name in SECTIONS)]
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!data:|#)|https?://|url\(|@import""", outside)
    assert "default-src 'none'" in html and re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", html)


def test_the_same_history_gives_the_same_bytes(db, html, tmp_path):
    assert write_history_page(db, out=tmp_path / "again.html").page.read_text() == html
    other = write_history_page(db, out=tmp_path / "other.html", seed=1).page.read_text()
    assert other != html and [s["id"] for t, s in _Reader(other).seen if t == "section"] == list(SECTIONS)


def test_every_picture_and_chart_has_a_text_and_every_control_a_name(html):
    for tag, attrs in _Reader(html).seen:
        if tag == "img":
            assert attrs["alt"] and attrs["src"].startswith("data:image/")
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])
        if tag == "button":
            assert attrs["type"] == "button" and attrs["aria-pressed"] == "false"
        if tag == "th" and "scope" not in attrs:
            assert attrs == {}  # the axis of whiskers


def test_what_a_model_answers_stays_text(html, db):
    found = _Reader(html).seen
    assert sum(tag == "script" for tag, _ in found) == 1 and not any("onerror" in attrs for _, attrs in found)
    assert HOSTILE not in html and "&lt;script&gt;document.title" in html
    assert "<b>v2</b>" not in html and "&lt;b&gt;v2" in html  # an annotation
    summary = write_history_page(db).summary.read_text()
    assert "<b>" not in summary and "<script" not in summary


def test_texts_of_any_length_are_cut_and_counted():
    assert report_diff.cut("a\n b") == "a b" and report_diff.cut(None) == ""
    long = report_diff.cut("<" * 5000)
    assert long.endswith("… (5,000 characters)") and long.count("&lt;") == report_diff.MAX_TEXT


def test_the_diff_shows_flips_first_and_says_what_it_leaves_out(html, reader):
    a, b = reader.pair()
    pairs = reader.rows("SELECT score_a, score_b FROM sample_diff WHERE run_a = ? AND run_b = ?", (a.run_id, b.run_id))
    assert len(pairs) == QUESTIONS
    outcome = {(1.0, 0.0): "only-a", (0.0, 1.0): "only-b", (0.0, 0.0): "both-wrong", (1.0, 1.0): "both-right"}
    expected = {kind: sum(outcome[row["score_a"], row["score_b"]] == kind for row in pairs) for kind in report_diff.KINDS}
    blocks = re.findall(r'<div data-kind="([a-z-]+)"><h4>([^<]*)</h4>(.*?)</article></div></div>', html, flags=re.S)
    assert [kind for kind, _, _ in blocks] == [kind for kind in report_diff.KINDS if expected[kind]]
    for kind, told, cards in blocks:
        count = min(report_diff.MOST_OF_KIND, expected[kind])
        assert f"{count} of {expected[kind]}" in told and cards.count('class="card pair"') == count
        assert ("left out" in told) is (expected[kind] > count)
        rights = {"only-a": (True, False), "only-b": (False, True), "both-wrong": (False, False), "both-right": (True, True)}[kind]
        for a_text, b_text in re.findall(r"<dt>A</dt><dd>(.*?)</dd><dt>B</dt><dd>(.*?)</dd>", cards, flags=re.S):
            assert ("✓ right" in a_text, "✓ right" in b_text) == rights
        assert cards.count("data:image/png;base64,") == count


def test_the_newest_run_is_compared_with_the_one_of_its_recipe_before_it(reader):
    assert [run.run_id for run in reader.pair()] == ["toy0night10", "toy0night11"]
    assert [run.run_id for run in reader.pair(b="toy0night03")] == ["toy0night02", "toy0night03"]
    assert [run.run_id for run in reader.pair(a="peer1", b="toy0night11")] == ["peer1night09", "toy0night11"]
    assert reader.pair(b="toy0night02")[0] is None  # the night before was asked otherwise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": "toy"}, "--a toy: 12 runs are called that; there are toy0night11"),
        ({"b": "nobody"}, "--b nobody: no runs are called that"),
        ({"a": "toy0night01", "b": "toy0night01"}, "--a toy0night01 and --b toy0night01 are the same run toy0night01: name another"),
        ({"a": "toy0night11"}, "--a toy0night11 and the newest run are the same run"),
        ({"out": Path("page.pdf")}, "ends in .html"),
    ],
)
def test_mistakes_are_told(db, options, message):
    with pytest.raises(AnyloomError, match=re.escape(message)):
        write_history_page(db, **options)


def test_a_history_without_runs_or_without_a_file_says_what_to_do(tmp_path):
    with pytest.raises(AnyloomError, match="no history yet"):
        write_history_page(tmp_path / "history.duckdb")
    history.rebuild(tmp_path / "stores", history.database_path(tmp_path / "stores"))
    with pytest.raises(AnyloomError, match="has no runs yet"):
        write_history_page(history.database_path(tmp_path / "stores"))


def test_nothing_stands_beside_each_other_across_fingerprints(html, db, tmp_path):
    board = html[html.index('id="leaderboard"') : html.index('id="trends"')]
    now, before = board.split("<details>")
    assert "comparable inside <code>aaaa" in now and "0ldf" not in now and "comparable inside <code>0ldf" in before
    charts = re.findall(r'aria-label="easyvqa_as_vqav2, exact_match: toy, helped.*?</svg>', html, flags=re.S)
    assert len(charts) == 1
    assert charts[0].count("<polyline") == charts[0].count('<polygon class="band"') == 3  # before 0ldf -> aaaa, before the annotation, after it
    assert charts[0].count('class="change"') == 1 and charts[0].count('class="mark ') == 2


def test_a_run_that_nothing_compares_with_still_has_a_page(tmp_path):
    db = append(tmp_path / "runs" / "stores", rows("only", [1.0, 0.0]))
    written = write_history_page(db)
    text = written.page.read_text()
    assert "No other run was asked the same" in text and "Nothing was compared yet" in text and written.runs == 1
    assert "A trend needs two evaluations" in text and 'id="gallery"' not in text
    assert "No other run was asked the same." in written.summary.read_text()


def test_runs_whose_artifacts_are_gone_are_told_so(tmp_path):
    db = append(tmp_path / "runs" / "stores", rows("a", [1.0, 0.0, 1.0]), rows("b", [0.0, 0.0, 1.0], night=1))
    text = write_history_page(db).page.read_text()
    assert text.count("its image is not kept with the evaluation") == 3 and "Only A is right: 1 of 1" in text


def test_answers_that_nobody_scored_are_counted_not_shown(tmp_path):
    runs = [rows("a", [1.0, 0.0, 1.0]), rows("b", [0.0, 0.0, 1.0], night=1)]
    samples = runs[1]["sample"]
    runs[1]["sample"] = samples.set_column(samples.column_names.index("score"), "score", [[None, 0.0, 0.3]])
    text = write_history_page(append(tmp_path / "runs" / "stores", *runs)).page.read_text()
    assert "1 question without a score of its own left out" in text and "✗ wrong (0.30)" in text
    assert text.count('class="card pair"') == 2


def test_a_comparison_stored_the_other_way_round_is_turned(tmp_path):
    stores = tmp_path / "runs" / "stores"
    append(stores, rows("a", [1.0, 0.0]), rows("b", [0.0, 0.0], night=1))
    row = {"run_a": "b", "run_b": "a", "task": TASK, "condition": "helped", "metric": "exact_match", "subgroup": "all", "n_paired": 2, "value_a": 0.0}
    row |= {"value_b": 0.5, "delta": 0.5, "ci_lo": 0.1, "ci_hi": 0.9, "p": 0.01, "p_adjusted": 0.02, "flips_up": 1, "flips_down": 0}
    row |= {"history_fingerprint": "aaaa"}
    append_comparisons(stores, [row])
    history.rebuild(stores, history.database_path(stores))
    with history.opened(history.database_path(stores)) as connection:
        reader = History(connection)
        (found,) = report_changes.comparisons(reader, *reader.pair())
    assert (found["run_a"], found["delta"], found["ci_lo"], found["ci_hi"], found["flips_down"], found["value_a"]) == ("a", -0.5, -0.9, -0.1, 1, 0.5)


def test_the_worst_regressions_stand_first(html, db):
    part = html[html.index('id="regressions"') : html.index('id="gallery"')]
    moves = [float(text) for text in re.findall(r'<span class="no">([+-][\d.]+)</span>', part)]
    assert len(moves) > 1 and moves == sorted(moves)
    summary = write_history_page(db).summary.read_text()
    assert summary.count("\n## ") == 3 and "## Regressions" in summary and f"{moves[0]:+.1f}" in summary


def test_pictures_are_found_by_name_and_by_hash_and_never_outside_the_artifacts(tmp_path, reader, db):
    import dataclasses
    from hashlib import sha256

    run = reader.by_id["toy0night11"]
    known = images_of(db.parent, run, TASK, ["media/000.png", "media/001.png", "absent.png", "../../../history.duckdb"])
    assert set(known) == {"media/000.png", "media/001.png"}
    digest = sha256(known["media/000.png"]).hexdigest()
    assert set(images_of(db.parent, run, TASK, [digest])) == {digest}
    assert images_of(db.parent, run, "another_task", ["media/000.png"]) == {}
    lists, reference = artifact(tmp_path, "lists")
    (lists / "media").mkdir()
    (lists / "media" / "a.png").write_bytes(drawing("circle", "red"))
    (tmp_path / "secret.png").write_bytes(drawing("circle", "red"))
    _, of_lists = artifact(tmp_path, "eval_media_questions", {}, {"lists": reference})
    asked = dataclasses.replace(run, inputs={"eval_media_questions": of_lists, "gone": "eval_gone/0123456789ab", "outside": "../../etc"})
    assert set(images_of(tmp_path, asked, "media_questions", ["media/a.png", "../../../secret.png", "media"])) == {"media/a.png"}


def test_media_of_questions_are_found_in_the_shards_they_were_asked_from(tmp_path, reader):
    import dataclasses

    from data_steps import pictures, run_step, write_manifest

    from pipelines.shards.config import ShardsConfig

    rows = [{**row, "split": split} for row, split in zip(pictures(tmp_path, 2), ("heldout", "train"), strict=True)]
    write_manifest(tmp_path, rows)
    shards, reference = artifact(tmp_path, "shards_instruct")
    run_step(tmp_path, "made", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    for file in (tmp_path / "made").glob("*.*"):
        file.rename(shards / file.name)
    _, of_shards = artifact(tmp_path, "eval_media_questions", {}, {"shards_instruct": reference})
    asked = dataclasses.replace(reader.by_id["toy0night11"], inputs={"eval_media_questions": of_shards})
    wanted = ["media/0.png", "media/1.png", "../../secret.png"]
    assert images_of(tmp_path, asked, "media_questions", wanted) == {"media/0.png": (tmp_path / "lists" / "media" / "0.png").read_bytes()}
    for tar in (tmp_path / "stores").rglob("shard.tar"):
        tar.unlink()
    assert images_of(tmp_path, asked, "media_questions", wanted) == {}  # what is gone is not shown


def test_previews_are_small_and_say_why_there_is_none():
    import base64
    import io

    from PIL import Image

    made = small(drawing("square", "blue", 1200), "a <blue> square")
    shown_picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", made)[1])))
    assert max(shown_picture.size) == SIDE and "a &lt;blue&gt; square" in made
    assert "not kept" in small(None, "") and "not_media" in small(b"no picture at all", "") and "cannot be shown" in small(drawing("circle", "red")[:60], "")


def test_media_take_no_more_room_than_there_is():
    room = Room(10)
    assert [room.take("x" * 6), room.take("y" * 4)] == ["x" * 6, "y" * 4] and "too large" in room.take("z") and room.left == 0


def test_clips_are_shown_as_frames_and_sounds_can_be_played(tmp_path):
    import io
    import wave

    import av
    import numpy as np

    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    assert '<audio controls preload="metadata" src="data:audio/wav;base64,' in small((tmp_path / "a.wav").read_bytes(), "a sound")
    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as clip:
        stream = clip.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for shade in range(5):
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * shade, np.uint8), format="rgb24")))
        clip.mux(stream.encode())
    assert '<img alt="a clip" src="data:image/' in small(made.getvalue(), "a clip")


def test_two_runs_that_were_never_asked_the_same_have_no_diff(tmp_path):
    db = append(tmp_path / "runs" / "stores", rows("a", [1.0]), rows("b", [1.0], night=1, fingerprint="bbbb"))
    text = write_history_page(db, a="a", b="b").page.read_text()
    assert "No question was asked of both in the same way" in text and 'class="card pair"' not in text


def test_the_gallery_is_a_seeded_draw_with_its_failures(html, db):
    part = html[html.index('id="gallery"') : html.index('id="training"')]
    assert "image, concepts, asked: 8 of 20, 12 left out" in part
    assert part.count('class="card"') == 8 and part.count("nothing was made") + part.count("data:image/png") == 8
    (directory,) = (db.parent / "artifacts" / "eval_generation").iterdir()
    made = made_in(directory)
    assert len(made) == 20 and sum(one.file is None for one in made) == 4
    assert drawn(made, 8, 0) == drawn(made, 8, 0) != drawn(made, 8, 1) and drawn(made, 99, 0) == made
    assert made_in(directory.parent) == []


def test_the_training_curves_say_the_loss_of_every_modality(html):
    part = html[html.index('id="training"') :]
    for letter in "AB":
        assert re.search(rf"{letter}: toy, [^<]*, by modality: tokens_image \d\.\d{{3}}, tokens_text 0\.250<", part)
    assert "captions 9" not in part


def test_a_file_name_outside_its_artifact_is_no_medium(tmp_path):
    from evals.pages.history.gallery import _inside

    assert _inside(tmp_path, "../x.png") is None and _inside(tmp_path, "") is None and _inside(tmp_path, "x.png") == tmp_path.resolve() / "x.png"
    assert Made(kind="", prompt="", file=None, said="", seen="", right=None, broken="").file is None


@pytest.mark.parametrize(
    ("row", "scale", "text"),
    [
        ({"metric": "exact_match", "value": 0.5, "ci_lo": 0.25, "ci_hi": None}, 100.0, "50.0"),
        ({"metric": "gpt_eval_score", "value": 61.54, "ci_lo": 60.0, "ci_hi": 63.0}, 1.0, "61.5"),
        ({"metric": "alignment_error", "value": 0.5123, "ci_lo": 0.4, "ci_hi": 0.6}, 1.0, "0.512"),
        ({"metric": "nll_per_token", "value": 3.25, "ci_lo": None, "ci_hi": None}, 1.0, "3.250"),
    ],
)
def test_only_shares_are_written_as_per_cent(row, scale, text):
    assert scale_of([row]) == scale and number_text(row["value"], scale) == text
    lo, hi = axis_of([row])
    assert lo <= 0 < row["value"] <= hi


def test_numbers_without_an_interval_say_so():
    assert interval(None, 0.5, 100.0) == "no interval" and interval(0.1, 0.2, 100.0, signed=True) == "[+10.0, +20.0]"
    assert (moved(-0.051, 100.0), moved(-0.051, 1.0), p_text(1e-9), p_text(0.0412), p_text(None)) == ("-5.1", "-0.051", "< 0.0001", "0.041", "")
    assert '<line class="whisker"' not in whisker(0.5, None, None, (0.0, 1.0)) and '<line class="whisker"' in whisker(0.5, 0.4, 0.6, (0.0, 1.0))


def test_a_trend_of_one_point_and_of_equal_values_can_be_drawn():
    one = Point(place=0, value=0.0, lo=None, hi=None, hover="")
    for points in ([one], [one, Point(place=1, value=0.0, lo=0.0, hi=0.0, hover="")]):
        chart = trend_chart(Trend(title="t", segments=[points], dates=["a"] * len(points)))
        assert "nan" not in chart and chart.count('class="dot"') == len(points)


def test_words_for_runs_and_metrics():
    assert short_seeds("stage1=0, stage3=0") == "seed 0" and short_seeds("stage1=0, stage3=1") == "stage1=0, stage3=1"
    assert main_metric(["ours_accuracy", "exact_match"]) == "exact_match" and main_metric(["b", "a"]) == "a"
    assert [row["subgroup"] for row in of_all([{"subgroup": "all"}, {"subgroup": "x"}])] == ["all"]
    assert [row["subgroup"] for row in of_all([{"subgroup": "video"}, {"subgroup": "audio"}])] == ["video", "audio"]


def test_nothing_of_the_data_is_markdown():
    assert plain("a|b <i> [x](y) `z` *k* exact_match _s_") == r"a\|b \<i\> \[x\](y) \`z\` \*k\* exact_match \_s\_"


def _luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    digits = colour if len(colour) == 6 else "".join(2 * c for c in colour)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_every_text_has_a_contrast_of_at_least_4_5(theme):
    colours = dict(re.findall(r"--([a-z-]+):#([0-9a-f]{3,6})", STYLE.split("@media (prefers-color-scheme:dark)")[theme].split("*{")[0]))
    for text in ("ink", "soft", "faint", "good", "bad", "model", "control"):
        for ground in ("bg", "card"):
            light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (theme, text, ground)
    light, dark = sorted((_luminance(colours["warn"]), _luminance(colours["warn-bg"])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5
