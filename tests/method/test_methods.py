"""Every method against its authors' code, a naive reference, damage, batches, sizes and dtypes."""

import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import family_model
import family_reference as reference
import pytest
import torch
from family_model import arrays, model_a, picture, random_picture, random_tower, texts
from family_reference import Residual, Tower
from torch import Tensor, nn

import gem_lite
from gem_lite.method import methods as folder
from gem_lite.method.base import Method
from gem_lite.method.config import ImageConfig
from gem_lite.method.heatmap import score_maps, similarity
from gem_lite.method.image import ImageEncoder, ImageFeatures, resample_positions
from gem_lite.method.methods import make_method, methods
from gem_lite.method.methods.clearclip import ClearCLIP
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.methods.maskclip import MaskCLIP
from gem_lite.method.methods.naclip import NACLIP
from gem_lite.method.methods.resclip import ResCLIP
from gem_lite.method.methods.sc_clip import SCCLIP
from gem_lite.method.methods.sclip import SCLIP
from gem_lite.method.methods.sfp import SFP
from gem_lite.method.scores import feature_surgery, key_smoothing, prompt_denoising

TOLERANCE = 1e-5  # of the largest value
FILES = sorted(Path(folder.__file__).parent.glob("[!_]*.py"))
SIZES = ("native", "large", "wide")

# The names of family.npz, and the declaration here that is the same.
GOLDEN: dict[str, Method] = {
    "gem": make_method("gem"),
    "gem_noresidual": GEMConfig(residual=False),
    "clip": make_method("clip"),
    "clip_sclip": make_method("clip", {"positions": "bicubic_offset"}),
    "maskclip_quickgelu": make_method("maskclip"),
    "maskclip_original": make_method("maskclip"),
    "surgery": make_method("clip_surgery"),
    "sclip": make_method("sclip"),
    "clearclip/vanilla": Method(residual=False, positions="bicubic_offset"),
    "clearclip/vanilla_residual": Method(mlp=True, positions="bicubic_offset"),
    "clearclip/MaskCLIP": MaskCLIP(residual=False, mlp=False, positions="bicubic_offset"),
    "clearclip/MaskCLIP_residual": MaskCLIP(positions="bicubic_offset"),
    "clearclip/SCLIP": SCLIP(residual=False, mlp=False),
    "clearclip/SCLIP_residual": SCLIP(),
    "clearclip/ClearCLIP": make_method("clearclip"),
    "clearclip/ClearCLIP_residual": ClearCLIP(residual=True, mlp=True),
    "clearclip/ClearCLIP_last3": ClearCLIP(last=3),
    "clearclip/ClearCLIP_last3_residual": ClearCLIP(last=3, residual=True, mlp=True),
    "naclip/reduced_naclip_std5": make_method("naclip"),
    "naclip/reduced_naclip_std1.5": NACLIP(std=1.5),
    "naclip/vanilla_naclip_std5": NACLIP(residual=True, mlp=True),
    "naclip/vanilla_vanilla": Method(mlp=True, positions="bicubic_offset"),
    "naclip/reduced_vanilla": Method(residual=False, positions="bicubic_offset"),
    "naclip/vanilla_csa": SCLIP(),
    "scclip": make_method("sc_clip"),
    "scclip_other": SCCLIP(beta=0.2, class_share=0.5),
    "sfp/SOM": make_method("sfp"),
    "sfp/L2": SFP(finder="norms"),
    "sfp/LOF": SFP(finder="scores"),
    "naclip/reduced_nonly_std5": NACLIP(strategy="nonly"),
    "naclip/reduced_kk": NACLIP(strategy="kk"),
    "itaclip": make_method("itaclip"),
    "itaclip_qk": make_method("itaclip", {"self_self": False}),
}
RESCLIP: dict[str, ResCLIP] = {
    "resclip": ResCLIP(),
    "resclip_keepfar": ResCLIP(damped=False),
    "resclip_rcs": ResCLIP(sfr=None),
    "resclip_sfr": ResCLIP(rcs=None),
    "resclip_sclip": ResCLIP(pairs=("qq", "kk"), std=None, residual=True, mlp=True),
    "resclip_clearclip": ResCLIP(pairs=("qq",), std=None),
    "resclip_vanilla": ResCLIP(pairs=("qk",), std=None, residual=True, mlp=True),
}


def encoder(tower: Tower, method: Method) -> ImageEncoder:
    """Our image tower with a reference tower's weights."""
    state = {name.removeprefix("visual."): value for name, value in tower.state.items()}
    width, _, patch, _ = state["conv1.weight"].shape
    side = round((len(state["positional_embedding"]) - 1) ** 0.5)
    config = ImageConfig(
        size=side * patch,
        patch=patch,
        width=width,
        layers=tower.layers,
        heads=tower.heads,
        mlp_width=len(state["transformer.resblocks.0.mlp.c_fc.bias"]),
    )
    made = ImageEncoder(config, state["proj"].shape[1], tower.activation, method)
    made.load_state_dict(state)
    for module in made.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = tower.eps
    return made.to(state["proj"].dtype).eval()


@cache
def golden_tower(original: bool) -> Tower:
    return model_a(*(("gelu", 1e-6) if original else ()), dtype=torch.float32)


@cache
def golden_encoder(method: Method, original: bool = False) -> ImageEncoder:
    """Shared by all tests: not to be changed."""
    return encoder(golden_tower(original), method)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def stored(key: str) -> Tensor:
    return torch.from_numpy(arrays()[key]).float()


CASES = [(name, size) for name in GOLDEN for size in SIZES if f"{name}/{size}/features" in arrays()]


@torch.no_grad()
def encode(name: str, size: str, method: Method) -> tuple[ImageEncoder, Tensor, ImageFeatures]:
    visual = golden_encoder(method, name == "maskclip_original")
    image = picture(size, torch.float32)[None]
    return visual, image, visual(image)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_features_equal_the_authors(name: str, size: str) -> None:
    _, _, features = encode(name, size, GOLDEN[name])
    expected = stored(f"{name}/{size}/features")
    assert error(features.gem[0, -len(expected) :], expected) <= TOLERANCE


@pytest.mark.parametrize("name", RESCLIP)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_resclip_equals_the_authors(name: str, size: str) -> None:
    key = f"{name}/{size}/cos"
    if key not in arrays():
        pytest.skip("not stored")
    visual, image, features = encode(name, size, RESCLIP[name])
    scores = RESCLIP[name].scores(visual, image, features, texts(dtype=torch.float32))
    assert error(scores[0], stored(key).flatten(1)) <= TOLERANCE


@pytest.mark.parametrize("last", [1, 2, 4])
@pytest.mark.parametrize("size", ["native", "large"])
def test_legrad_equals_the_authors(last: int, size: str) -> None:
    method = make_method("legrad", {"last": last})
    visual, image, features = encode("legrad", size, method)
    with torch.inference_mode():  # gradients all the same
        scores = method.scores(visual, image, features, texts(dtype=torch.float32)[:3])
    maps = score_maps(scores, features.grid, (image.shape[-2], image.shape[-1]))
    expected = stored(f"legrad/last{last}/{size}/map")
    assert (maps[0][:, 3::4, 3::4] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("size", ["native", "large"])
def test_feature_surgery_equals_the_authors(size: str) -> None:
    visual, image, features = encode("surgery", size, GOLDEN["surgery"])
    words, empty = texts(dtype=torch.float32), texts("empty", dtype=torch.float32)
    key = f"surgery/{size}/similarity_"
    found = feature_surgery(features.gem, words)
    assert error(found[0].T, stored(key + "surgery")) <= TOLERANCE
    redundant = feature_surgery(features.gem, words, empty)[0].T
    assert error(redundant, stored(key + "redundant")) <= TOLERANCE
    single = feature_surgery(features.gem, words[:1], empty)[0].T
    assert error(single, stored(key + "single")) <= TOLERANCE
    method = make_method("clip_surgery", {"features": "surgery"})
    assert torch.equal(method.scores(visual, image, features, words), found[..., 1:])


@pytest.mark.parametrize("size", ["native", "large"])
@pytest.mark.parametrize(("setting", "threshold"), [(0, 0.8), (1, 0.5)])
def test_points_equal_the_authors(size: str, setting: int, threshold: float) -> None:
    checked = 0
    for word in range(6):
        name = f"surgery/{size}/points{setting}_{word}"
        if name not in arrays():
            continue
        similarities = stored(f"surgery/{size}/similarity_surgery")[1:, word]
        points, labels = gem_lite.similarity_map_to_points(similarities, (375, 500), threshold)
        assert points.tolist() == arrays()[name].tolist()
        assert labels.tolist() == arrays()[f"surgery/{size}/labels{setting}_{word}"].tolist()
        checked += 1
    assert checked


@pytest.mark.parametrize("name", ["maskclip_original", "maskclip_quickgelu"])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_denoising_and_smoothing_equal_the_authors(name: str, size: str) -> None:
    visual = encoder(golden_tower(name == "maskclip_original"), GOLDEN[name])
    image = picture(size, torch.float32)[None]
    features = visual(image, keep=[11])
    words = texts(dtype=torch.float32)
    classes = torch.cat([words, 0.3 * words[:1]])  # the authors do not normalise texts
    scores = similarity(features.gem[:, 1:], classes) * classes.norm(dim=-1)[:, None]
    assert error(scores[0], stored(f"{name}/{size}/cos").flatten(1)) <= TOLERANCE
    sure = prompt_denoising(scores, 0.9)
    assert error(sure[0], stored(f"{name}/{size}/denoised").flatten(1)) <= TOLERANCE
    last = visual.transformer.resblocks[-1]
    keys = torch.nn.functional.linear(
        last.ln_1(features.tokens[11]), last.attn.in_proj_weight, last.attn.in_proj_bias
    ).chunk(3, dim=-1)[1]
    keys = last.attn.out_proj(keys)[:, 1:]
    smooth = key_smoothing(scores, keys, 1.0)
    assert error(smooth[0], stored(f"{name}/{size}/smoothed").flatten(1)) <= TOLERANCE
    both = key_smoothing(sure, keys, 0.8)
    assert error(both[0], stored(f"{name}/{size}/both").flatten(1)) <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bilinear", "bilinear"),
        ("bicubic", "bicubic"),
        ("bicubic_offset", "bicubic_offset"),
        ("bicubic_antialias", "bicubic_antialias"),
    ],
)
def test_positions_equal_the_authors(kind: str, name: str) -> None:
    table = model_a(dtype=torch.float32).state["visual.positional_embedding"]
    checked = 0
    for size, (height, width) in family_model.SIZES.items():
        if f"pos/{name}/{size}" in arrays():
            found = resample_positions(table, (7, 7), (height // 16, width // 16), kind)
            assert error(found[:, :32], stored(f"pos/{name}/{size}")) <= TOLERANCE
            checked += 1
    assert checked


# ---- another model, in float64, against the naive reference


@cache
def other_tower() -> Tower:
    return random_tower(5, 48, 13, 3, 8, 6, 80, 20, "gelu", gain=1.4)


OTHER = {
    "gem": reference.gem,
    "maskclip": reference.maskclip,
    "sclip": reference.sclip,
    "clearclip": lambda t, x: reference.clearclip(t, x, "ClearCLIP", False, 1),
    "naclip": lambda t, x: reference.naclip(t, x, "reduced", "naclip", 5.0),
    "clip_surgery": reference.clip_surgery,
    "videogem": lambda t, x: weighted_gem(t, x, (0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.9, 0.9)),
}


def weighted_gem(tower: Tower, image: Tensor, weights: tuple[float, ...]) -> Tensor:
    """VideoGEM's static weights: of the input of the first of the last blocks, and of each."""
    h, first = reference.stream(tower, image, "bicubic_antialias"), tower.layers + 1 - len(weights)
    terms = [reference.gem_attention(tower, i + 1, h[i]) for i in range(first, tower.layers)]
    return sum(w * x for w, x in zip(weights, [h[first], *terms], strict=True))


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("size", [(48, 48), (56, 88), (80, 40)])
@torch.no_grad()
def test_another_model(name: str, size: tuple[int, int]) -> None:
    tower, image = other_tower(), random_picture("other", size)
    if name == "clip_surgery" and size != (48, 48):
        pytest.skip("the authors' code takes square pictures only")
    expected = reference.project(tower, OTHER[name](tower, image))
    found = encoder(tower, make_method(name))(image[None]).gem[0]
    assert error(found[1:], expected[1:]) <= 1e-10


@torch.no_grad()
def test_videogem_with_weights_of_one_is_gem() -> None:
    tower, image = other_tower(), random_picture("other", (56, 88))
    plain = encoder(tower, make_method("videogem", {"weights": 8 * (1.0,)}))(image[None]).gem
    assert error(plain, encoder(tower, GEMConfig(blocks=7))(image[None]).gem) <= 1e-10


@torch.no_grad()
def test_another_model_resclip() -> None:
    tower, image = other_tower(), random_picture("other", (56, 80))
    words = torch.nn.functional.normalize(torch.randn(4, 20, dtype=torch.float64), dim=-1)
    tokens = reference.resclip(tower, image, words, Residual())
    expected = reference.cosines(reference.project(tower, tokens), words, (7, 10)).flatten(1)
    method = make_method("resclip")
    visual = encoder(tower, method)
    found = method.scores(visual, image[None], visual(image[None]), words)[0]
    assert error(found, expected) <= 1e-4  # a value of the matrix may round to the next float16


# ---- what holds for every method

NAMES = [info.name for info in methods()]


def test_what_is_listed() -> None:
    for name in ("clip", "gem", "maskclip", "clip_surgery", "sclip", "clearclip", "naclip"):
        assert name in NAMES
    for name in ("sc_clip", "resclip", "legrad"):
        assert name in NAMES
    assert gem_lite.methods() == methods()
    for info in methods():
        assert info.paper and info.summary.endswith(".")
        assert info.settings == {f.name: f.default for f in fields(make_method(info.name))}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_method_is_a_short_file(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    ours = [line for line in lines if re.match("from \\.", line)]
    assert all(line.startswith("from ..") for line in ours)  # it knows no other method


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(112, 112), (70, 150), (16, 16), (32, 16)])
@torch.no_grad()
def test_batches_are_their_images(name: str, size: tuple[int, int]) -> None:
    method = make_method(name)
    visual = golden_encoder(method)
    images = torch.stack([random_picture(f"b{i}", size, dtype=torch.float32) for i in range(3)])
    words = texts(dtype=torch.float32)
    together = visual(images)
    scores = method.scores(visual, images, together, words)
    grid = (size[0] // 16, size[1] // 16)
    assert together.gem.shape == (3, 1 + grid[0] * grid[1], 32)
    assert scores.shape == (3, 6, grid[0] * grid[1]) and scores.isfinite().all()
    for index in range(3):
        alone = visual(images[index : index + 1])
        assert error(together.gem[index], alone.gem[0]) <= 1e-5
        own = method.scores(visual, images[index : index + 1], alone, words)[0]
        assert (scores[index] - own).abs().max() <= 1e-5 * max(1, float(own.abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    method = make_method(name)
    image = picture("native", torch.float32)[None]
    visual = encoder(golden_tower(False), method)
    words = texts(dtype=torch.float32)
    exact = method.scores(visual, image, visual(image), words)
    visual, image = visual.to(dtype), image.to(dtype)
    found = method.scores(visual, image, visual(image), words)
    assert found.isfinite().all()
    if dtype == torch.float64 and name != "resclip":
        assert error(found.float(), exact) <= 1e-4


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"legrad"}))
def test_gradients(name: str) -> None:
    visual = encoder(golden_tower(False), make_method(name))
    image = picture("native", torch.float32)[None].requires_grad_()
    visual(image).gem.square().sum().backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.any()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"clip", "legrad"}))
@torch.no_grad()
def test_the_clip_stream_is_clips(name: str) -> None:
    """Whatever the gem stream does, CLIP's own stays what it is at the native size."""
    image = picture("native", torch.float32)[None]
    plain = golden_encoder(make_method("clip"))(image).clip
    assert error(golden_encoder(make_method(name))(image).clip, plain) <= 1e-6


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gem", {"iters": 0}),
        ("gem", {"residual": False}),
        ("clip_surgery", {"blocks": 5}),
        ("maskclip", {"mlp": False}),
        ("sclip", {"residual": False}),
        ("clearclip", {"residual": True}),
        ("naclip", {"std": 4.0}),
        ("sc_clip", {"beta": 0.5}),
        ("sc_clip", {"at": (8, 4, 4, 10)}),
        ("sfp", {"beta": 0.45}),
        ("sfp", {"finder": "norms"}),
        ("sfp", {"class_share": 0.2}),
        ("naclip", {"strategy": "kk"}),
        ("itaclip", {"middle": (7, 8, 9)}),
        ("itaclip", {"self_self": False}),
    ],
)
def test_a_damaged_method_fails_its_golden(name: str, change: dict[str, object]) -> None:
    """The goldens would notice a dropped step or another constant."""
    key = {"clip_surgery": "surgery", "clearclip": "clearclip/ClearCLIP", "sc_clip": "scclip"}
    key |= {"naclip": "naclip/reduced_naclip_std5", "maskclip": "maskclip_quickgelu"}
    key |= {"sfp": "sfp/SOM"}
    golden = key.get(name, name)
    method = make_method(name, change)
    _, _, features = encode(golden, "native", method)
    expected = stored(f"{golden}/native/features")
    assert error(features.gem[0, -len(expected) :], expected) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "change",
    [{"rcs": (2.0, 0.41)}, {"sfr": (1.8, 0.6)}, {"damped": False}, {"threshold": 0.6}],
)
@torch.no_grad()
def test_a_damaged_resclip_fails_its_golden(change: dict[str, object]) -> None:
    method = replace(ResCLIP(), **change)
    visual, image, features = encode("resclip", "native", method)
    scores = method.scores(visual, image, features, texts(dtype=torch.float32))
    assert error(scores[0], stored("resclip/native/cos").flatten(1)) > 10 * TOLERANCE


def test_unusable_settings() -> None:
    with pytest.raises(ValueError, match="unknown method 'gemm'; expected one of.*'gem'"):
        make_method("gemm")
    with pytest.raises(ValueError, match="'naclip' has no setting 'sdt'; it has.*'std'"):
        make_method("naclip", {"sdt": 3.0})
    with pytest.raises(ValueError, match=r"std is -1; expected a number in"):
        make_method("naclip", {"std": -1})
    with pytest.raises(TypeError, match="blocks is 'six'; expected a whole number"):
        make_method("clip_surgery", {"blocks": "six"})
    with pytest.raises(ValueError, match="features is 'none'; expected one of"):
        make_method("clip_surgery", {"features": "none"})
