"""Small data sets in the official schemas, laid out as on the hub: what `anyloom eval prepare --from` reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from suite_fakes import COLOURS

TEXT, INT, PICTURE = Value("string"), Value("int64"), Image()


def png(colour: tuple[int, ...], side: int = 12) -> dict[str, Any]:
    """A flat picture as an undecoded cell."""
    buffer = io.BytesIO()
    Pictures.new("RGB", (side, side), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "x.png"}


def write(root: Path, name: str, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
    """One Parquet file below root, written by `datasets` as the hub's are."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    typed = Features(features)
    Dataset.from_list([{key: row.get(key) for key in features} for row in rows], features=typed).to_parquet(str(path))


def vqav2(root: Path) -> None:
    """Two questions per picture; annotators who do not all agree, and one answer that the packaged scorer writes otherwise."""
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        said = [name] * (10 - number // 2) + [f"dark {name}"] * (number // 2)
        for turn, question in enumerate(("What color is it?", "Is it red?")):
            answers = said if turn == 0 else ["yes" if name == "red" else "no"] * 10
            answers = ["Two Cats."] * 10 if (name, turn) == ("white", 1) else answers
            rows.append(
                {
                    "question_type": "what" if turn == 0 else "is",
                    "multiple_choice_answer": answers[0],
                    "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)],
                    "image_id": number,
                    "answer_type": "other" if turn == 0 else "yes/no",
                    "question_id": 10 * number + turn,
                    "question": question,
                    "image": png(colour),
                }
            )
    answer = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": INT}
    columns = {"question_type": TEXT, "multiple_choice_answer": TEXT, "answers": List(answer), "image_id": INT, "answer_type": TEXT, "question_id": INT}
    write(root, "VQAv2/data/validation-00000-of-00001.parquet", rows, columns | {"question": TEXT, "image": PICTURE})


def textvqa(root: Path) -> None:
    """One question per picture; some annotators write it otherwise."""
    rows = [
        {
            "image_id": name,
            "question_id": number,
            "question": "what is written?",
            "image": png(colour),
            "image_width": 12,
            "image_height": 12,
            "answers": [name] * (3 + number) + [f"{name}s"] * (7 - number),
            "ocr_tokens": [name],
        }
        for number, (name, colour) in enumerate(COLOURS.items())
    ]
    columns = {"image_id": TEXT, "question_id": Value("int32"), "question": TEXT, "image": PICTURE, "image_width": INT, "image_height": INT}
    write(root, "textvqa/data/validation-00000-of-00001.parquet", rows, columns | {"answers": List(TEXT), "ocr_tokens": List(TEXT)})


def mmbench(root: Path) -> None:
    """Four rotations of a question per picture; the rotations do not stand beside each other, and a second config is there too."""
    names = list(COLOURS)
    rows = []
    for turn in range(4):
        for number, name in enumerate(names):
            options = [name, *(names[(number + k) % len(names)] for k in (1, 2, 3))]
            options = options[turn:] + options[:turn]
            row = {"index": number + turn * 10**6, "question": "Which color?", "hint": "nan", "answer": "ABCD"[options.index(name)]}
            row |= dict(zip("ABCD", options, strict=True)) | {
                "category": ("warm", "cold")[number % 2],
                "L2-category": "color",
                "source": "made",
                "split": "dev",
            }
            rows.append(row | {"image": png(COLOURS[name]), "comment": "nan"})
    text = ("question", "hint", "answer", "A", "B", "C", "D", "category", "source", "L2-category", "comment", "split")
    columns = {"index": INT, **dict.fromkeys(text, TEXT), "image": PICTURE}
    write(root, "MMBench/en/dev-00000-of-00001.parquet", rows, columns)
    write(root, "MMBench/cn/dev-00000-of-00001.parquet", rows[:1], columns)


def gqa(root: Path) -> None:
    """Questions and pictures apart, as the hub has them."""
    pictures = [{"id": name, "image": png(colour)} for name, colour in COLOURS.items()]
    questions = [{"id": str(n), "imageId": name, "question": "What color is it?", "answer": name} for n, name in enumerate(reversed(list(COLOURS)))]
    write(root, "GQA/testdev_balanced_images/testdev-00000-of-00001.parquet", pictures, {"id": TEXT, "image": PICTURE})
    columns = dict.fromkeys(("id", "imageId", "question", "answer"), TEXT)
    write(root, "GQA/testdev_balanced_instructions/testdev-00000-of-00001.parquet", questions, columns)


def mmmu(root: Path) -> None:
    """Multiple choice and open questions; one with two pictures."""
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        row: dict[str, Any] = {"id": f"validation_Art_{number + 1}", "question": "Which color is <image 1>?", "answer": "A", "question_type": "multiple-choice"}
        row |= {"options": str([name, "pink", "grey", "brown"]), "image_1": png(colour)}
        rows.append(row)
    rows[1] |= {"question": "Name the color of <image 1>.", "question_type": "open", "answer": "['green', 'bright green']", "options": "[]"}
    rows[2]["image_2"], rows[2]["question"] = png((1, 2, 3)), "Which of <image 1> and <image 2> is blue?"
    columns = {**dict.fromkeys(("id", "question", "options", "answer", "question_type"), TEXT), **{f"image_{i}": PICTURE for i in range(1, 8)}}
    write(root, "MMMU/data/validation-00000-of-00001.parquet", rows, columns)


def seedbench(root: Path) -> None:
    """Pictures in lists; one question about a clip of several."""
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        choices = {"choice_a": "pink", "choice_b": name, "choice_c": "grey", "choice_d": "brown"}
        rows.append({"answer": "B", **choices, "data_type": "image", "question": "Which color?", "question_id": str(number), "image": [png(colour)]})
    rows.append({**rows[0], "question_id": "clip", "data_type": "video", "image": [png((1, 2, 3)), png((3, 2, 1))]})
    text = ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_type", "question", "question_id")
    write(root, "SEED-Bench/data/test-00000-of-00001.parquet", rows, {**dict.fromkeys(text, TEXT), "image": List(PICTURE)})


def coco(root: Path) -> None:
    """Five captions per picture."""
    rows = [
        {"question_id": f"{n:012d}.jpg", "image": png(colour), "id": n, "answer": [f"a {name} square", f"a square that is {name}", "a flat picture"]}
        for n, (name, colour) in enumerate(COLOURS.items())
    ]
    write(root, "COCO-Caption2017/data/val-00000-of-00001.parquet", rows, {"question_id": TEXT, "image": PICTURE, "id": INT, "answer": List(TEXT)})


def pope(root: Path) -> None:
    """Yes and no, each category with ids of its own."""
    rows = []
    for n, (name, colour) in enumerate(COLOURS.items()):
        row = {"question_id": str(n // 2), "question": "Is it red?", "answer": "yes" if name == "red" else "no", "image": png(colour)}
        rows.append(row | {"category": ("random", "popular")[n % 2]})
    columns = {**dict.fromkeys(("question_id", "question", "answer", "category"), TEXT), "image": PICTURE}
    write(root, "POPE/data/test-00000-of-00001.parquet", rows, columns)


def judged(root: Path) -> None:
    """MM-Vet and LLaVA-Bench."""
    rows = []
    for n, (name, colour) in enumerate(COLOURS.items()):
        row = {"question_id": f"v1_{n}", "question": "Which color?", "answer": name, "capability": "rec", "image": png(colour)}
        rows.append(row | {"gpt_answer": f"It is {name}.", "category": ("conv", "detail", "complex")[n % 3], "caption": [f"a {name} square"]})
    text = dict.fromkeys(("question_id", "question", "answer", "capability"), TEXT)
    write(root, "MMVet/data/test-00000-of-00001.parquet", rows, {**text, "image": PICTURE})
    columns = {**dict.fromkeys(("question_id", "question", "gpt_answer", "category"), TEXT), "caption": List(TEXT), "image": PICTURE}
    write(root, "llava-bench-in-the-wild/data/train-00000-of-00001.parquet", rows, columns)


def core(root: Path) -> Path:
    """The three data sets of the suite core."""
    for make in (vqav2, textvqa, mmbench):
        make(root)
    return root


def full(root: Path) -> Path:
    """All ten."""
    for make in (core, gqa, mmmu, seedbench, coco, pope, judged):
        make(root)
    return root
