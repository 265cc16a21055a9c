"""Sections about held-out captions: stage 1 by their likelihood (eval_captions), stage 2 by the conditioning made from them (eval_alignment)."""

from __future__ import annotations

from html import escape

from evals.pages.charts import Dot, axis_of, interval_chart
from evals.pages.page import bracketed, left_out_note, metrics_of, paragraph, percent, section, signed, source_note, table
from evals.pages.run.context import RunPage
from infra.step import Artifact


def captions_section(page: RunPage, artifact: Artifact) -> str:
    """Gain of held-out captions from their own media; "" without captions."""
    at = {(m["subgroup"], m["metric"], m["condition"]): m for m in metrics_of(artifact)}
    rows, dots = [], []
    for modality in dict.fromkeys(key[0] for key in at):
        token = [at[modality, "nll_per_token", which]["value"] for which in ("right", "shuffled", "blank")]
        gain, wins = at[modality, "nll_per_caption", "shuffled - right"], at[modality, "right_wins", "right"]
        rows.append(
            [
                escape(modality),
                *(f"{value:.3f}" for value in token),
                *(signed(each["value"], each["ci_lo"], each["ci_hi"]) for each in (gain, at[modality, "nll_per_caption", "blank - right"])),
                percent(wins["value"], wins["ci_lo"], wins["ci_hi"]),
                f"{gain['n']:,}",
                f"{gain['clusters']:,}",
                str(dict(artifact.result.get(modality) or {}).get("caption_text_in_training", "")),
            ]
        )
        dots.append(Dot(label=modality, value=gain["value"], lo=gain["ci_lo"], hi=gain["ci_hi"], note=f"n {gain['n']}"))
    if not dots:
        return ""
    low, high = axis_of(dots, 0.0, 0.1)
    chart = interval_chart(dots, width=760, lo=low, hi=high * 1.02, title="gain in nats per caption", zero=True)
    return section(
        "Stage 1: does the right media make its caption likelier?",
        paragraph(
            "Cross-entropy of held-out captions in nats, with their own media and with the media of another sample (other media and other "
            "caption, seeded), or blank (white, or silence). Gain: shuffled minus right per caption, paired; above 0 the media is used. Intervals: 95 % "
            "intervals over media. "
            "Text in training: captions whose text a training sample has too.",
            "soft",
        ),
        table(
            [
                "modality",
                *(f"{which}, per token" for which in ("right", "shuffled", "blank")),
                "gain per caption",
                "blank minus right",
                "right is likelier, %",
                "captions",
                "media",
                "text in training",
            ],
            rows,
            numeric=range(1, 10),
        ),
        chart,
        left_out_note(artifact),
        source_note(artifact),
    )


def alignment_section(page: RunPage, artifact: Artifact) -> str:
    """Error of the conditioning against the text states of held-out captions; "" without captions."""
    at = {m["condition"]: m for m in metrics_of(artifact)}
    names = {"right": "own caption", "shuffled": "another caption", "mean_predictor": "mean of the training targets"}
    rows: list[list[str]] = []
    for name, label in names.items():
        if m := at.get(name):
            gain = at.get(f"{name} - right")
            rows.append(
                [
                    label,
                    f"{m['value']:.3f} {bracketed(m['ci_lo'], m['ci_hi'])}",
                    signed(gain["value"], gain["ci_lo"], gain["ci_hi"], digits=3) if gain else "",
                    f"{m['n']:,}",
                ]
            )
    if not rows:
        return ""
    return section(
        "Stage 2: does the output projector say what the caption says?",
        paragraph(
            "Distance between the conditioning made from the signal tokens and the decoder's text-encoder states of held-out captions (lower is better). "
            "Gain: how much lower the error with the own caption is, paired; 95 % interval over captions. "
            f"Held out: caption texts that no training dataset has; {artifact.result.get('seen_in_training', 0)} others were left out.",
            "soft",
        ),
        table(["conditioning of", "error", "gain of own caption", "captions"], rows, numeric=(1, 2, 3)),
        left_out_note(artifact),
        source_note(artifact),
    )
