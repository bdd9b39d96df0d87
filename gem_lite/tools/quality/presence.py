"""How well scores tell words whose thing is in a picture from words whose thing is not, as AUC.

Every collage is asked for every name that there are drawings of. AUC is the chance that a word
that is there scores above a word that is not, whichever pictures the two are asked of: 0.5 says
nothing, 1 is faultless.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...method.heatmap import similarity
from ...method.presence import NEUTRAL, evidence, presence
from ...predictor import GEMPredictor
from .compare import RESAMPLES, Interval
from .measure import UNSEEN, batches, style_groups
from .scenes import Scene, scenes
from .sprites import Sprites

SCALE = 50.0  # of cosines in the softmax, as in `GEMPredictor.segment`


class Views:
    """What there is to score a word by: a batch's features, and embeddings of words.

    whole: [b, e], CLIP's of the picture; patches: [b, n, e], the method's; text: [p, e], of the
    words; neutral: [k, e].
    """

    def __init__(self, whole: Tensor, patches: Tensor, text: Tensor, neutral: Tensor) -> None:
        self.whole, self.patches, self.text, self.neutral = whole, patches, text, neutral

    def highest(self, text: Tensor) -> Tensor:
        """[b, p]: each word's cosine where it is highest."""
        return similarity(self.patches, text).amax(dim=-1)

    def against_neutral(self) -> Tensor:
        """The highest probability that a patch is the word's and no neutral word's."""
        own = similarity(self.patches, self.text)  # [b, p, n]
        others = (SCALE * similarity(self.patches, self.neutral)).logsumexp(dim=1, keepdim=True)
        return (SCALE * own - others).amax(dim=-1)  # log odds: the same order


# Each gives [b, p], higher where the word's thing is more probably there.
SCORES: Mapping[str, Callable[[Views], Tensor]] = {
    "presence": lambda v: presence(v.whole, v.patches, v.text, v.neutral),
    "evidence alone, without neutral words": lambda v: evidence(v.whole, v.patches, v.text),
    "highest cosine": lambda v: v.highest(v.text),
    "cosine of the whole picture": lambda v: similarity(v.whole[:, None], v.text)[..., 0],
    "highest cosine less that of neutral words": lambda v: (
        v.highest(v.text) - v.highest(v.neutral).mean(dim=-1, keepdim=True)
    ),
    "highest probability against neutral words": Views.against_neutral,
    "highest cosine, text centred": lambda v: v.highest(v.text - v.neutral.mean(dim=0)),
}


def asked(
    model: GEMPredictor,
    collages: Sequence[Scene],
    names: Sequence[str],
    transform: Callable[[Image.Image], Tensor],
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Each of SCORES [pictures, names], and whether the name is there [pictures, names].

    transform: the model's own, PIL -> [3, h, w]; advance: called with the number of collages of
    each batch that is done. Raises ValueError when there are no collages.
    """
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in SCORES}
    with torch.inference_mode():
        text, neutral = (model.encode_text(list(words))[0] for words in (names, NEUTRAL))
        for batch, images in batches(collages, transform):
            features = model.encode_image(images)
            views = Views(features.class_embedding, features.gem, text, neutral)
            for name, score in SCORES.items():
                found[name].append(score(views).cpu().numpy())
            advance(len(batch))
    there = np.array([[name in scene.names for name in names] for scene in collages])
    return {name: np.concatenate(parts) for name, parts in found.items()}, there


def auc(
    scores: NDArray[np.float32],
    there: NDArray[np.bool_],
    times: NDArray[np.int64] | None = None,
) -> float:
    """The chance that what is there scores above what is not; of equals one half is above.

    scores, there: [pictures, names]; times: [pictures], how often each counts, default once.
    NaN where all or nothing is there.
    """
    weights = np.ones(len(scores)) if times is None else times.astype(np.float64)
    each = np.broadcast_to(weights[:, None], scores.shape)
    _, group = np.unique(scores, return_inverse=True)
    group = group.reshape(scores.shape)
    right = np.bincount(group[there], each[there], minlength=group.max() + 1)
    wrong = np.bincount(group[~there], each[~there], minlength=group.max() + 1)
    pairs = float(right.sum() * wrong.sum())
    below = np.cumsum(wrong) - wrong / 2
    return float((right * below).sum() / pairs) if pairs else float("nan")


def auc_interval(
    scores: NDArray[np.float32], there: NDArray[np.bool_], *, seed: int = 0
) -> Interval:
    """`auc`, and where 95 % of the resamplings of the pictures lie."""
    rng = np.random.default_rng(seed)
    _, ranks = np.unique(scores, return_inverse=True)
    ordered: NDArray[np.float32] = ranks.reshape(scores.shape).astype(np.float32)
    count = len(scores)
    resampled = [
        auc(ordered, there, np.bincount(rng.integers(0, count, count), minlength=count))
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return Interval(auc(scores, there), float(low), float(high))


def presence_figures(
    model: GEMPredictor,
    transform: Callable[[Image.Image], Tensor],
    sprites: Sprites,
    *,
    unseen: Sequence[str] = UNSEEN,
    seed: int = 0,
    count: int = 64,
    advance: Callable[[int, int, str], None] = lambda done, total, style: None,
) -> dict[str, dict[str, Interval]]:
    """The AUC of each of SCORES, and two rows on the number itself, by kind of style.

    Arguments and outer keys as in `measure.figures`, of collages of 3 to 4 things.
    """
    groups = style_groups(sprites, unseen)
    columns: dict[str, dict[str, Interval]] = {}
    for place, (title, chosen) in enumerate(groups.items()):
        done = [place * count]

        def scored(batch: int, title: str = title, done: list[int] = done) -> None:
            done[0] += batch
            advance(done[0], count * len(groups), title)

        scored(0)
        collages = list(scenes(sprites.select(styles=chosen), seed=seed, count=count, jitter=0.0))
        scores, there = asked(model, collages, sprites.concepts, transform, advance=scored)
        columns[title] = {name: auc_interval(each, there) for name, each in scores.items()}
        above = scores["presence"] > 0.5
        for name, chosen_words in (("there", there), ("not there", ~there)):
            share = float(above[chosen_words].mean())
            columns[title][f"presence above 0.5 where {name}"] = Interval(share, share, share)
    return columns


def presence_report(columns: Mapping[str, Mapping[str, Interval]]) -> str:
    """The figures as a markdown table, in %, with intervals where they have one."""
    lines = ["| AUC in % | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in next(iter(columns.values())):
        cells = []
        for value, low, high in (column[name] for column in columns.values()):
            interval = f" ({100 * low:.1f} to {100 * high:.1f})" if low < high else ""
            cells.append(f"{100 * value:.1f}{interval}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
