"""Single features: over a passage of text, and against the directions of concepts."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stages.lib.report import draw
from stages.lib.report.contexts import Stretch
from stages.lib.report.draw import Matrix
from stages.lib.report.figures.plate import plate
from stages.lib.report.page import Figure


def heat_map(
    found: Stretch, features: Sequence[int], labels: Mapping[int, str], largest: Mapping[int, float]
) -> Figure:
    """Activations of features along a passage, each scaled to the feature's largest one in the whole split."""
    most = np.array([[largest[feature]] for feature in features], np.float64)
    scaled = np.minimum(found.feature_acts.T / np.maximum(most, 1e-12), 1.0)
    names = [f"{feature} {labels.get(feature, '')}".strip() for feature in features]
    tokens = [token.replace("\n", "⏎").replace(" ", "·").replace("$", r"\$") for token in found.tokens]
    tokens = [token if len(token) <= 14 else f"{token[:13]}…" for token in tokens]
    matrix = Matrix(np.asarray(scaled, dtype=np.float64), names, tokens, "activation / maximum")
    with plate("heat_map", 10.0, 1.4 + 0.19 * len(names) + 0.3) as drawn:
        draw.heat_map(drawn.axes[0], matrix, limits=(0.0, 1.0))
    return drawn.captioned(
        f"Features against the tokens of a passage of `{found.document}` (test split), each row scaled to the "
        "feature's largest activation on test. Rows are the features with the largest share of their activation in "
        "the passage; beside the number, the feature's best concept."
    )


def feature_map(cosines: npt.NDArray[np.float64], concepts: Sequence[str], features: Sequence[str], arm: str) -> Figure:
    """Cosines between concept directions and the decoder directions of the features that detect them best."""
    side = 2.6 + 0.17 * len(concepts)
    with plate("feature_map", min(10.0, side + 1.2), side) as drawn:
        draw.heat_map(drawn.axes[0], Matrix(cosines, concepts, features, "cosine"), diverging=True)
        drawn.axes[0].set_xlabel("feature (best detector of the concept in the same row)")
    return drawn.captioned(
        "Cosine between the direction in which activations differ with a concept (rows; mean difference on fit "
        f"tokens) and the decoder direction of the best feature of each (columns), `{arm}`. A dark diagonal means "
        "that features that detect a concept also write in its direction; dark off the diagonal, that concepts share "
        "a direction."
    )
