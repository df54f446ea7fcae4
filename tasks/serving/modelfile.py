"""A model file: a rung's weights, and what whoever uses them must know, as safetensors metadata.

To what `describe` says (model, classes, preprocessing, recipe) it adds where the weights come from:
"dataset", "home" and "run", whose report is `reports/<home>/<run>/`; "rung", its label there;
"weights", the sha256 by which the cache knows them; "temperature", by which logits are divided
before the softmax; "fit", how images of another size are resized; "familiar", see
`tasks.rungs.familiar`, "figures" and "versions", JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.caching.basics import DamagedError, LadderError, clean
from tasks.caching.own import is_own
from tasks.caching.values import Weights, content_name, load, weights_bytes
from tasks.report.seeds import models_of
from tasks.rungs.models import MODELS

FIGURES = ("testing_accuracy", "interval", "balanced_accuracy", "macro_f1", "validation_accuracy")
NEEDED = ("model", "classes", "preprocessing", "recipe")


def model_of(
    weights: Weights, temperature: float, results: Mapping[str, Any], run: str, label: str
) -> Weights:
    """A rung's weights as a model file holds them.

    temperature: what `calibrate` fitted.  results: results.json of the run of this name.
    """
    rung, data = models_of(results["rungs"])[label], results["dataset"]
    return Weights(
        weights.tensors,
        {
            **weights.metadata,
            "dataset": data["name"],
            "home": data["home"],
            "run": run,
            "rung": label,
            "weights": content_name(weights_bytes(weights), ""),
            "temperature": repr(temperature),
            "fit": data["fit"],
            "familiar": json.dumps(
                {**data["familiar"], "lowest_logit": rung["calibration"]["lowest_logit"]}
            ),
            "figures": json.dumps({name: rung[name] for name in FIGURES}),
            "versions": json.dumps(
                {name: results["environment"][name] for name in ("stepladder", "torch", "python")}
            ),
        },
    )


def read_model(path: Path) -> Weights:
    """What a model file holds, or a file of weights in the cache.

    Raises LadderError for any other file, and for a model that the code here does not have.
    """
    try:
        weights: Weights = load({"$weights": path.name}, path.parent)
        ours = all(name in weights.metadata for name in NEEDED)
    except DamagedError:
        ours = False
    if not ours:
        raise LadderError(f"{clean(path)} is no model file; `stepladder export` writes one")
    if (model := weights.metadata["model"]) not in MODELS and not is_own(model):
        raise LadderError(f"{clean(path)} holds a model '{clean(model)}', which is not among the "
                          "MODELS of tasks/rungs/models.py")  # fmt: skip
    return weights
