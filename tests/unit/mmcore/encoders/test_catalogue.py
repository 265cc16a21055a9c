"""The catalogue of encoder weights: every kind is in it, with a licence and a tiny twin that a weights step makes and the kind opens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from twins import pairs, spec_of, weights_of

from mmcore.encoders import ENCODERS, MODALITY_OF, load_encoder
from mmcore.encoders.catalogue import CATALOGUE, TWINS, known
from pipelines.toys.media import medium


def test_every_kind_and_every_twin_is_in_the_catalogue():
    assert {kind for entry in CATALOGUE for kind in entry.kinds} == set(ENCODERS)
    assert {entry.tiny for entry in CATALOGUE} == set(TWINS)
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert entry.commercial in ("yes", "no", "unknown") and entry.licence and entry.published and entry.features.startswith("[")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("twins")


@pytest.mark.parametrize(("kind", "twin"), list(pairs()))
def test_the_twin_is_made_by_a_step_and_gives_the_stated_width(kind, twin, root):
    spec = spec_of(kind, twin)
    features = load_encoder(spec, weights_of(root, kind, twin)).encode([medium(MODALITY_OF[kind])])[0]
    assert features.shape[1] == spec.width and features.dtype == np.float16 and np.isfinite(features).all() and np.ptp(features) > 0


def test_weights_are_known_by_arch_or_by_a_family_of_one_licence():
    assert known("hf_image", "clip:vit-large-patch14").name == "CLIP ViT-L/14"
    assert known("hf_video", "clip:of-my-own").licence == "MIT"
    assert known("timm_image", "dm_nfnet_f6").licence == "Apache-2.0"
    assert known("timm_image", "resnet50") is None and known("hf_image", "ijepa") is None
    assert known("imagebind_audio", "imagebind_huge").commercial == "no"


def test_the_command_prints_every_entry_and_importing_the_table_imports_no_torch():
    done = subprocess.run([sys.executable, "-m", "flows.cli.main", "encoders"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    for entry in CATALOGUE:
        for word in (entry.name, entry.published, *entry.kinds, entry.arch, entry.commercial, entry.tiny):
            assert word in done.stdout
    quick = subprocess.run([sys.executable, "-c", "import sys, pipelines.dag.build, mmcore.encoders.catalogue; sys.exit('torch' in sys.modules)"], timeout=60)
    assert quick.returncode == 0
