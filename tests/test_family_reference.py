"""The naive family reference against what the authors' own code returned (golden/family.npz).

One test per stored array, named method/size/stage. The reference runs in float64, the authors' code
ran in float32.
"""

from functools import cache

import family_reference as reference
import pytest
import torch
from family_model import arrays, model_a, picture, random, random_picture, texts
from family_reference import Residual, Tower
from torch import Tensor

TOLERANCE = 2e-5  # of the largest value of an array
LATER = ("sfp", "itaclip", "itaclip_qk", "legrad", "stats", "texts", "empty")
NAMES = sorted(
    name
    for name in arrays()
    if name.split("/")[0] not in LATER and "scene" not in name and name != "sclip/logits"
)


SETTINGS = Residual()
RESCLIP = {
    "resclip": SETTINGS,
    "resclip_keepfar": SETTINGS._replace(delete_same_entity=False),
    "resclip_rcs": SETTINGS._replace(sfr=False),
    "resclip_sfr": SETTINGS._replace(rcs=False),
    "resclip_sclip": SETTINGS._replace(base="sclip", residual=True),
    "resclip_clearclip": SETTINGS._replace(base="clearclip"),
    "resclip_vanilla": SETTINGS._replace(base="vanilla", residual=True),
}


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
    if name == "surgery":
        return reference.clip_surgery(model, image)
    if name == "scclip":
        return reference.scclip(model, image)
    if name == "scclip_other":
        return reference.scclip(model, image, beta=0.2, res_cls=0.5)
    if name in RESCLIP:
        return reference.resclip(model, image, texts(), RESCLIP[name])
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


def surgery_stages(features: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """CLIP Surgery's similarities, heat maps at 40 x 56 and points."""
    similarities = {
        "plain": reference.unit(features) @ texts().T,
        "surgery": reference.feature_surgery(features, texts()),
        "redundant": reference.feature_surgery(features, texts(), texts("empty")),
        "single": reference.feature_surgery(features, texts()[:1], texts("empty")),
    }
    stages = {}
    for what, similarity in similarities.items():
        stages[f"similarity_{what}"] = similarity
        stages[f"map_{what}"] = reference.surgery_map(similarity, grid, (40, 56))[..., :2]
    for i, threshold in enumerate((0.8, 0.5)):
        for n in range(2):
            patches = similarities["surgery"][1:, n]
            points, labels = reference.similarity_map_to_points(patches, (375, 500), threshold, 2)
            stages |= {f"points{i}_{n}": points, f"labels{i}_{n}": labels}
    return stages


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
    if method == "surgery":
        result |= surgery_stages(result["features"], grid)
    if method.startswith("scclip"):
        result["outliers"], result["lof"] = reference.scclip_outliers(tower(), image)
    if method in RESCLIP and RESCLIP[method].sfr:
        classes = reference.resclip_classes(tower(), image, texts(), RESCLIP[method])
        result["classes"] = classes
        result["sfr"] = reference.resclip_matrix(classes, RESCLIP[method])[:16]
    result["cos"] = reference.cosines(result["features"], texts(), grid)
    return result


def stage(name: str) -> Tensor:
    """The reference's own value of one stored array."""
    first, *_, last = name.split("/")
    if first == "check":
        of = name.split("/")[1]
        return (picture(last) if of == "picture" else tower().state[of]).flatten()[:8]
    if name == "pamr/out":
        noise = random("pamr").standard_normal((1, 2, 10, 14))[0]
        image = random_picture("pamr", (40, 56))
        return reference.pamr(image, torch.from_numpy(noise), 4, (1, 3))
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
    if not expected.is_floating_point():
        assert (actual == expected).all(), f"{name}: {actual.tolist()}, not {expected.tolist()}"
        return
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"{name}: {error:.1e} of the largest value away"
