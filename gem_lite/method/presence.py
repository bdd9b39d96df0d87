"""Whether a word's thing is in the picture at all, and maps of several words on one scale.

Each map by itself says where its word fits best, even where nothing fits. So the word is held
against neutral ones, which are true of most pictures or of none.
"""

import torch
from torch import Tensor

from .heatmap import similarity

NEUTRAL = (
    *("background", "wall", "sky", "ground", "floor", "thing", "object", "picture", "pattern"),
    *("colour", "shape", "texture", "nothing", "person", "animal", "plant", "food", "vehicle"),
    *("building", "furniture", "tool", "clothes", "toy", "water", "grass", "tree", "road", "table"),
    *("paper", "book", "light", "window", "door", "hand", "face", "stone", "cloud", "mountain"),
    *("box", "bottle", "letter", "number", "line"),
)
# p(present) = sigmoid(SLOPE (z - CENTRE)): between the fits to trained and to unseen drawings of
# the small model in the box, where half of the words asked for are there.
SLOPE, CENTRE = 1.5, 1.5


def evidence(whole: Tensor, patches: Tensor, text: Tensor) -> Tensor:
    """How well words fit a picture as a whole, plus how well they fit where they fit best.

    whole: [b, e], CLIP's class embedding; patches: [b, n, e]; text: [p, e]. Returns [b, p].
    """
    return similarity(whole[:, None], text)[..., 0] + similarity(patches, text).amax(dim=-1)


def presence(whole: Tensor, patches: Tensor, text: Tensor, neutral: Tensor) -> Tensor:
    """How probable it is that each word's thing is in the picture: [b, p] in [0, 1].

    whole, patches, text: as in `evidence`; neutral: [k, e], of `NEUTRAL`. A word's evidence is
    counted in standard deviations above the mean of the neutral words' in the same picture, so that
    what a model or a picture adds to all cosines says nothing.
    """
    others = evidence(whole, patches, neutral)
    spread = others.std(dim=-1, keepdim=True).clamp(min=torch.finfo(others.dtype).tiny)
    z = (evidence(whole, patches, text) - others.mean(dim=-1, keepdim=True)) / spread
    return torch.sigmoid(SLOPE * (z - CENTRE))


def common_scale(maps: Tensor, present: Tensor) -> Tensor:
    """A picture's maps on one scale, faded where the word's thing is not there: in [0, 1].

    maps: [b, p, h, w], cosines; present: [b, p]. Each map is counted from its own lowest value, in
    units of the picture's largest such span, and multiplied with the word's presence.
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = (maps.amax(dim=(-2, -1), keepdim=True) - low).amax(dim=1, keepdim=True)
    # As in `min_max`: a constant leaves roundings, which must not be blown up.
    rounding = 4 * torch.finfo(maps.dtype).eps * low.abs().amax(dim=1, keepdim=True)
    unit = present[..., None, None] / torch.where(span <= rounding, torch.inf, span)
    return (maps - low) * unit
