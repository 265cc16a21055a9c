"""The whole DAG on one page: from a Recipe to its Steps.

    data        assets -> lists -> manifest_* -> shards_*, overlap
    weights     weights_lm, weights_image, weights_audio, weights_text, weights_query
    decoders    weights_decoder_*, image_decoder and the judges of what is made
    features    embed_*, targets*, embed_latents*, embed_text
    training    the stages in the recipe's order (states before a stage on states), export; or two_tower
    evaluation  eval_*, history, report

Each part is one call that returns a frozen dataclass of Steps; a later part reads the earlier ones. Nothing is run, and no model library is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.step import Step
from pipelines.dag.data import plan_data
from pipelines.dag.decoders import plan_decoders
from pipelines.dag.evaluation import plan_evaluation
from pipelines.dag.features import plan_features
from pipelines.dag.given import plan_given
from pipelines.dag.parts import steps_of
from pipelines.dag.training import plan_training
from pipelines.dag.weights import plan_weights
from pipelines.recipes.recipe import Recipe


def build(recipe: Recipe, own_lists: Mapping[str, Path] | None = None, own_weights: Mapping[str, Path] | None = None) -> dict[str, Step]:
    """Every step of the recipe by name, inputs first.

    own_lists: dataset -> a list file that takes the place of the recipe's; it counts by its bytes, and its relative media paths start at its own directory;
    or suite -> the record of prepared data. own_weights: `imagebind` -> the released file, `lm` -> a transformers directory, another part (image, audio,
    text) -> what its encoder's kind opens, or `decoder_<modality>` -> the diffusers directory of a published decoder of the recipe.
    Raises AnyloomError for a name the recipe does not have and weights that are not what they should be. A step whose files are not given says which
    (Step.needs).
    """
    recipe, given = plan_given(recipe, own_lists or {}, own_weights or {})
    data = plan_data(recipe, given)
    weights = plan_weights(recipe, given, data)
    decoders = plan_decoders(recipe, given, data, weights)
    features = plan_features(recipe, given, data, weights, decoders)
    training = plan_training(recipe, data, weights, decoders, features)
    evaluation = plan_evaluation(recipe, given, data, weights, decoders, features, training)
    return steps_of(data, weights, decoders, features, training, evaluation)
