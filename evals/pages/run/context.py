"""What every section of the run's page is given besides the artifacts that it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evals.config import ReportConfig
from infra.step import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPage:
    """The page of one run. A section is a function of it and of the artifacts of the rows of evals.evaluation that name the section."""

    config: ReportConfig
    inputs: Mapping[str, Artifact]
    """Everything that the report reads."""
