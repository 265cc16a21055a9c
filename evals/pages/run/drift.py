"""The report's section on drift: what stage 3 does to the output side that was trained before it.

Input: the eval_drift artifact. Output: HTML.
"""

from __future__ import annotations

from evals.pages.page import bracketed, left_out_note, metrics_of, paragraph, section, signed, source_note, table
from evals.pages.run.context import RunPage
from infra.step import Artifact

ROWS = {"before": "after stage 2, before stage 3", "after": "after stage 3", "mean_predictor": "mean of the training targets (floor)"}


def drift_section(page: RunPage, artifact: Artifact) -> str:
    """The section; "" without held-out captions."""
    at = {(m["metric"], m["condition"]): m for m in metrics_of(artifact)}
    if not at:
        return ""
    rows = []
    for name, label in ROWS.items():
        error, nll, gain = at["alignment_error", name], at.get(("signal_nll", name)), at.get(("alignment_error", f"mean_predictor - {name}"))
        rows.append(
            [
                label,
                f"{error['value']:.3f} {bracketed(error['ci_lo'], error['ci_hi'])}",
                signed(gain["value"], gain["ci_lo"], gain["ci_hi"], digits=3) if gain else "",
                f"{nll['value']:.3f} {bracketed(nll['ci_lo'], nll['ci_hi'])}" if nll else "",
            ]
        )
    moved = [at[metric, "after - before"] for metric in ("alignment_error", "signal_nll")]
    errors, nlls = (signed(m["value"], m["ci_lo"], m["ci_hi"], digits=3) for m in moved)
    rows.append(["drift: after minus before (paired)", errors, "", nlls])
    return section(
        "Drift: does stage 3 undo stage 2?",
        paragraph(
            "Stage 3 moves the hidden states that stage 2 aligned. The same held-out captions before and after it: distance between the conditioning and the "
            "decoder's text-encoder states (lower is better), and cross-entropy of the signal tokens in nats per token. "
            f"{moved[0]['n']:,} captions; 95 % intervals over captions.",
            "soft",
        ),
        table(["output side", "alignment error", "gain over the mean", "signal tokens"], rows, numeric=(1, 2, 3)),
        left_out_note(artifact),
        source_note(artifact),
    )
