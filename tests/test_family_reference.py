"""The naive family reference against what the authors' own code returned (golden/family.npz).

One test per stored array, named method/size/stage. The reference runs in float64, the authors' code
ran in float32.
"""

from functools import cache

import family_reference as reference
import pytest
import torch
from family_model import arrays, model_a, picture, texts
from family_reference import Tower
from torch import Tensor

TOLERANCE = 2e-5  # of the largest value of an array
DONE = (
    "check",
    "pos",
    "gem",
    "gem_noresidual",
    "clip",
    "clip_sclip",
    "sclip",
    "clearclip",
    "naclip",
)
NAMES = sorted(
    name
    for name in arrays()
    if name.split("/")[0] in (*DONE, "maskclip_original", "maskclip_quickgelu")
    and "scene" not in name
    and name != "sclip/logits"
)


@cache
def tower(method: str = "") -> Tower:
    """Model A; the original MaskCLIP ran it with GELU and another eps."""
    return model_a("gelu", 1e-6) if method == "maskclip_original" else model_a()


def tokens(method: str, size: str) -> Tensor:
    """What a method, by its name in family.npz, hands to ln_post."""
    model, image = tower(method), picture(size)
    name, _, variant = method.partition("/")
    if name in ("gem", "gem_noresidual"):
        return reference.gem(model, image, residual=name == "gem")
    if name in ("clip", "clip_sclip"):
        return reference.clip(model, image)
    if name.startswith("maskclip"):
        return reference.maskclip(model, image)
    if name == "sclip":
        return reference.sclip(model, image)
    if name == "clearclip":
        kind, _, rest = variant.partition("_")
        blocks = 3 if "last3" in rest else 1
        return reference.clearclip(model, image, kind, rest.endswith("residual"), blocks)
    if name == "naclip":
        arch, strategy, *std = variant.split("_")
        width = float(std[0].removeprefix("std")) if std else 5.0
        return reference.naclip(model, image, arch, strategy, width)
    raise KeyError(method)


def maskclip_stages(
    method: str, image: Tensor, features: Tensor, grid: tuple[int, int]
) -> dict[str, Tensor]:
    """The original MaskCLIP's head for seven classes, of which the last has a short vector."""
    classes = torch.cat([texts(), 0.3 * texts()[:1]])
    logits = classes @ reference.unit(features).T
    sure = reference.denoised(logits, 0.9)
    model = tower(method)
    stages = {
        "cos": logits,
        "denoised": sure,
        # In float32, as the authors' code ran: some p round to 1, and p < 1 fails for them.
        "smoothed": reference.smoothed(model, image, logits.float(), 1.0),
        "both": reference.smoothed(model, image, sure, 0.8),
    }
    return {what: x.reshape(-1, *grid) for what, x in stages.items()}


@cache
def results(method: str, size: str) -> dict[str, Tensor]:
    """Everything that family.npz holds of one method at one size, by stage."""
    image = picture(size)
    grid = reference.patch_grid(tower(), image)
    result = {"tokens": tokens(method, size)}
    rows = len(arrays()[f"{method}/{size}/features"])
    result["features"] = reference.project(tower(method), result["tokens"])[-rows:]
    if method.startswith("maskclip"):
        return result | maskclip_stages(method, image, result["features"], grid)
    result["cos"] = reference.cosines(result["features"], texts(), grid)
    return result


def stage(name: str) -> Tensor:
    """The reference's own value of one stored array."""
    first, *_, last = name.split("/")
    if first == "check":
        of = name.split("/")[1]
        return (picture(last) if of == "picture" else tower().state[of]).flatten()[:8]
    if first == "pos":
        kind, size = name.split("/")[1:]
        grid = reference.patch_grid(tower(), picture(size))
        table = tower().state["visual.positional_embedding"]
        return reference.positions(table, grid, kind)[:, :32]
    if "omega" in name:
        grid = reference.patch_grid(tower(), picture(last))
        return reference.gaussian_window(grid, float(name.split("/")[1].split("std")[1]))[:12]
    method, size, what = name.rsplit("/", 2)
    return results(method, size)[what]


@pytest.mark.parametrize("name", NAMES)
def test_reference(name: str) -> None:
    expected, actual = torch.from_numpy(arrays()[name]), stage(name)
    assert expected.shape == actual.shape, f"{name}: {tuple(actual.shape)}"
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"{name}: {error:.1e} of the largest value away"
