"""The network by itself: sizes, keys, precisions, copies, knobs. Exactness is tested elsewhere."""

import copy
import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from small import CONFIG, GEM, random_images, small_network
from torch import Tensor, nn

from gem_lite.method.attention import adaptive_inv_temp, self_self_attention
from gem_lite.method.base import Trunk
from gem_lite.method.config import ACTIVATIONS, ARCHITECTURES, Activation, ModelConfig, architecture
from gem_lite.method.image import ImageEncoder, ImageFeatures, resample_positions
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.model import GEMNetwork

TOKENS = torch.tensor([[1498, 320, 7, 9, 1499, 0, 0], [1498, 11, 600, 601, 602, 603, 1499]])

# Float64, two ways to the same numbers: seen 7e-16 relative to the largest value.
ROUNDING = 1e-12


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value expected."""
    assert found.shape == expected.shape
    difference = (found.detach().double() - expected.detach().double()).abs().max()
    return float(difference / expected.detach().double().abs().max())


def assert_close(found: ImageFeatures, expected: ImageFeatures, limit: float = ROUNDING) -> None:
    assert found.grid == expected.grid
    assert error(found.clip, expected.clip) <= limit
    assert error(found.gem, expected.gem) <= limit


# ---- architectures and names

PARAMETERS = {
    "ViT-B/32": 151_277_313,
    "ViT-B/32-256": 151_277_313 + (8**2 - 7**2) * 768,
    "ViT-B/16": 149_620_737,
    "ViT-B/16-plus-240": 208_377_345,
    "ViT-L/14": 427_616_513,
    "ViT-L/14-336": 427_944_193,
    "ViT-H/14": 986_109_441,
    "ViT-H/14-378": 986_109_441 + (27**2 - 16**2) * 1280,
    "ViT-g/14": 1_366_678_273,  # open_clip's model profile says 1,366.68 million
    "ViT-bigG/14": 2_539_567_105,
}


def test_every_architecture_has_a_count() -> None:
    assert set(PARAMETERS) == set(ARCHITECTURES)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_real_model(name: str, activation: Activation) -> None:
    config = architecture(name, activation)
    assert config.activation == activation
    with torch.device("meta"):
        network = GEMNetwork(config, GEMConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert not list(network.buffers())


@pytest.mark.parametrize("name", ["ViT-B/16", "ViT-B-16", "vit-b-16"])
def test_names(name: str) -> None:
    assert architecture(name) == ARCHITECTURES["ViT-B/16"]
    quick = architecture(name + "-quickgelu")
    assert quick == replace(ARCHITECTURES["ViT-B/16"], activation="quick_gelu")


def test_openai_spelling_of_the_large_model() -> None:
    assert architecture("ViT-L/14@336px") == ARCHITECTURES["ViT-L/14-336"]


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'ViT-B/61'.*nearest known: 'ViT-B/16'.*quickgelu"):
        architecture("ViT-B/61")
    with pytest.raises(TypeError, match="16; expected a string"):
        architecture(16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="says QuickGELU but activation is 'gelu'"):
        architecture("ViT-B/16-quickgelu", "gelu")


def block_keys(prefix: str) -> list[str]:
    return [
        f"{prefix}.ln_1.weight",
        f"{prefix}.ln_1.bias",
        f"{prefix}.attn.in_proj_weight",
        f"{prefix}.attn.in_proj_bias",
        f"{prefix}.attn.out_proj.weight",
        f"{prefix}.attn.out_proj.bias",
        f"{prefix}.ln_2.weight",
        f"{prefix}.ln_2.bias",
        f"{prefix}.mlp.c_fc.weight",
        f"{prefix}.mlp.c_fc.bias",
        f"{prefix}.mlp.c_proj.weight",
        f"{prefix}.mlp.c_proj.bias",
    ]


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_keys_are_clips_own_at_every_depth(blocks: int) -> None:
    expected = [
        "positional_embedding",
        "text_projection",
        "logit_scale",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.proj",
        "visual.conv1.weight",
        "visual.ln_pre.weight",
        "visual.ln_pre.bias",
        *block_keys("visual.transformer.resblocks.0"),
        *block_keys("visual.transformer.resblocks.1"),
        *block_keys("visual.transformer.resblocks.2"),
        "visual.ln_post.weight",
        "visual.ln_post.bias",
        *block_keys("transformer.resblocks.0"),
        *block_keys("transformer.resblocks.1"),
        "token_embedding.weight",
        "ln_final.weight",
        "ln_final.bias",
    ]
    state = small_network(GEMConfig(blocks=blocks)).state_dict()
    assert sorted(state) == sorted(expected)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["visual.conv1.weight"] == (48, 3, 8, 8)
    assert shapes["visual.positional_embedding"] == (26, 48)
    assert shapes["visual.proj"] == (48, 20)
    assert shapes["transformer.resblocks.1.attn.in_proj_weight"] == (108, 36)
    assert shapes["text_projection"] == (36, 20)
    assert shapes["logit_scale"] == ()


def test_the_same_weights_serve_every_setting() -> None:
    state = small_network().state_dict()
    for gem in (GEMConfig(blocks=0), GEMConfig(blocks=3, iters=2, streams="k", residual=False)):
        small_network(gem, seed=1).load_state_dict(state, strict=True)


# ---- sizes


@pytest.mark.parametrize(("h", "w"), [(8, 8), (40, 40), (64, 24), (47, 30), (15, 71), (8, 15)])
def test_any_size_from_one_patch_up(h: int, w: int) -> None:
    """Sides that are no multiple of the patch are cropped, to the right and below."""
    network = small_network().double()
    images = random_images(2, h, w).double()
    found = network.encode_image(images)
    grid = (h // 8, w // 8)
    assert found.grid == grid
    assert found.clip.shape == found.gem.shape == (2, 1 + grid[0] * grid[1], 20)
    assert_close(found, network.encode_image(images[:, :, : grid[0] * 8, : grid[1] * 8]))


def test_an_image_is_told_from_its_transpose() -> None:
    network = small_network()
    images = random_images(1, 16, 40)
    upright, turned = network.encode_image(images), network.encode_image(images.mT)
    assert upright.grid == (2, 5) and turned.grid == (5, 2)
    assert error(turned.gem, upright.gem) > 0.01


def test_as_many_tokens_as_channels() -> None:
    """13 x 59 patches on ViT-B/16 are 768 tokens, its width: where upstream crashes."""
    image = replace(ARCHITECTURES["ViT-B/16"].image, layers=1, mlp_width=16)
    encoder = ImageEncoder(image, 8, "gelu", GEMConfig(blocks=1))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        features = encoder(random_images(1, 13 * 16, 59 * 16))
    assert features.grid == (13, 59)
    assert features.gem.shape == (1, 768, 8)
    assert features.gem.isfinite().all()


def test_as_many_tokens_as_channels_are_resampled() -> None:
    """23 patches and the class token are the small model's width, not its native grid."""
    network = small_network(width=24, heads=4).double()
    images = random_images(1, 8, 23 * 8).double()
    with torch.no_grad():
        found = network.encode_image(images)
        resampled = resample_positions(network.visual.positional_embedding, (5, 5), (1, 23))
        wide = small_network(width=24, heads=4).double()
        wide.visual.positional_embedding = nn.Parameter(resampled)
        wide.visual.native_grid = (1, 23)
        assert_close(found, wide.encode_image(images))


# ---- positions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_positions_at_the_native_grid_are_untouched(dtype: torch.dtype) -> None:
    positions = torch.randn(1 + 3 * 4, 6).to(dtype)
    assert resample_positions(positions, (3, 4), (3, 4)) is positions


@pytest.mark.parametrize("grid", [(9, 9), (4, 4), (3, 17), (1, 1), (30, 2), (14, 7), (5, 1)])
def test_positions_elsewhere_are_as_pillow_resizes(grid: tuple[int, int]) -> None:
    """Pillow's bicubic resize of each channel: another program with the same kernel."""
    positions = torch.randn(1 + 7 * 7, 5, generator=torch.Generator().manual_seed(0))
    found = resample_positions(positions, (7, 7), grid)
    channels = [
        Image.fromarray(channel.reshape(7, 7).numpy()).resize(
            (grid[1], grid[0]), Image.Resampling.BICUBIC
        )
        for channel in positions[1:].T
    ]
    expected = np.stack([np.asarray(channel) for channel in channels], axis=-1).reshape(-1, 5)
    assert found.shape == (1 + grid[0] * grid[1], 5)
    assert torch.equal(found[0], positions[0])
    assert np.abs(found[1:].numpy() - expected).max() <= 5e-6  # seen 1.2e-6


def test_positions_of_a_turned_grid_are_resampled() -> None:
    positions = torch.randn(1 + 2 * 8, 3)
    assert not torch.equal(resample_positions(positions, (2, 8), (4, 4)), positions)
    assert not torch.equal(resample_positions(positions, (2, 8), (8, 2)), positions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_positions_are_resampled_in_float32(dtype: torch.dtype) -> None:
    positions = torch.randn(1 + 7 * 7, 5).to(dtype)
    found = resample_positions(positions, (7, 7), (9, 4))
    assert found.dtype == dtype
    assert torch.equal(found, resample_positions(positions.float(), (7, 7), (9, 4)).to(dtype))


# ---- precisions and devices

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]
# Largest error relative to the largest value against float64 on the CPU, same weights: seen on the
# CPU 4e-7, 9e-4, 7e-3.
PRECISIONS = {torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("side", [40, 64])
def test_precisions(dtype: torch.dtype, device: str, side: int) -> None:
    network = small_network().to(device, dtype)
    images = random_images(2, side, side).to(device, dtype)
    assert network.dtype == dtype and network.device.type == device
    with torch.no_grad():
        found = network.encode_image(images)
        text = network.encode_text(TOKENS.to(device))
        exact = copy.deepcopy(network).double().cpu()
        expected = exact.encode_image(images.double().cpu())
        expected_text = exact.encode_text(TOKENS)
    assert found.clip.dtype == found.gem.dtype == text.dtype == dtype
    assert found.gem.device.type == device
    assert error(found.clip.cpu(), expected.clip) <= PRECISIONS[dtype]
    assert error(found.gem.cpu(), expected.gem) <= PRECISIONS[dtype]
    assert error(text.cpu(), expected_text) <= PRECISIONS[dtype]


def test_the_adaptive_temperature_survives_large_norms_in_half_precision() -> None:
    x = torch.full((1, 3, 1024), 2100.0)  # a norm past float16's largest number
    found = adaptive_inv_temp(x.half(), 64)
    assert found.dtype == torch.float16 and found.shape == (1, 1, 1, 1)
    assert float(found) == 2100 * 1024**0.5 / 8


# ---- gradients


def gradients(network: GEMNetwork, loss: Tensor) -> dict[str, bool]:
    """Whether each parameter's gradient is there and not zero."""
    network.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        for name, parameter in network.named_parameters()
    }


@pytest.mark.parametrize("side", [40, 48], ids=["native", "resampled"])
def test_gradients_of_the_gem_stream(side: int) -> None:
    """All of the image tower but what only the clip stream of the last block passes through."""
    network = small_network()
    images = random_images(2, side, side).requires_grad_()
    gem = network.encode_image(images).gem
    reached = gradients(network, (gem * torch.randn(gem.shape)).sum())
    last = "visual.transformer.resblocks.2."
    outside = {name for name in reached if not name.startswith("visual.")}
    only_clip = {name for name in reached if name.startswith((last + "ln_2", last + "mlp"))}
    assert {name for name, there in reached.items() if not there} == outside | only_clip
    assert images.grad is not None and images.grad.abs().max() > 0


def test_gradients_of_the_clip_stream() -> None:
    network = small_network()
    clip = network.encode_image(random_images(2, 40, 40)).clip
    reached = gradients(network, (clip * torch.randn(clip.shape)).sum())
    assert {name for name, there in reached.items() if there} == {
        name for name in reached if name.startswith("visual.")
    }


def test_gradients_of_the_text_tower() -> None:
    network = small_network()
    text = network.encode_text(TOKENS)
    reached = gradients(network, (text * torch.randn(text.shape)).sum())
    expected = {name for name in reached if not name.startswith("visual.")} - {"logit_scale"}
    assert {name for name, there in reached.items() if there} == expected


@pytest.mark.parametrize("iters", [0, 1, 2])
@pytest.mark.parametrize("adaptive", [True, False])
def test_gradcheck_of_self_self_attention(iters: int, adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(iters)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    streams, v = draw(2, 2, 2, 4, 3), draw(2, 2, 4, 3)
    if adaptive:
        inv_temp = (2 + draw(2, 1, 1, 1).detach().abs()).requires_grad_()
        inputs = (streams, v, inv_temp)
    else:
        inputs = (streams, v, 3.0)
    assert torch.autograd.gradcheck(
        lambda s, v, t: self_self_attention(s, v, t, iters=iters), inputs
    )


# ---- nothing is changed, everything can be copied


def test_inputs_and_weights_are_left_alone() -> None:
    network = small_network()
    images, tokens = random_images(2, 48, 40), TOKENS.clone()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given = images.clone()
    versions = [parameter._version for parameter in network.parameters()]
    attributes = {name: set(vars(module)) for name, module in network.named_modules()}
    network.encode_image(images)
    network.encode_text(tokens)
    assert torch.equal(images, given) and torch.equal(tokens, TOKENS)
    assert versions == [parameter._version for parameter in network.parameters()]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert attributes == {name: set(vars(module)) for name, module in network.named_modules()}


def test_self_self_attention_leaves_its_inputs_alone() -> None:
    streams, v, inv_temp = torch.randn(3, 2, 4, 5, 6), torch.randn(2, 4, 5, 6), torch.rand(2)
    inv_temp = inv_temp[:, None, None, None]
    given = [tensor.clone() for tensor in (streams, v, inv_temp)]
    self_self_attention(streams, v, inv_temp, iters=2)
    assert all(map(torch.equal, given, (streams, v, inv_temp)))


def test_the_same_twice_and_no_randomness_in_train_mode() -> None:
    network, images = small_network(), random_images(2, 40, 48)
    first = network.encode_image(images)
    assert torch.equal(first.gem, network.encode_image(images).gem)
    assert torch.equal(first.gem, network.train().encode_image(images).gem)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_give_the_same_and_stand_apart(how: str) -> None:
    network, images = small_network(), random_images(1, 40, 48)
    again = copy.deepcopy(network) if how == "deepcopy" else pickle.loads(pickle.dumps(network))
    expected = network.encode_image(images)
    found = again.encode_image(images)
    assert torch.equal(found.clip, expected.clip) and torch.equal(found.gem, expected.gem)
    assert torch.equal(again.encode_text(TOKENS), network.encode_text(TOKENS))
    assert again.config == network.config and again.method == network.method
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(network.encode_image(images).gem, expected.gem)


def test_to_and_half() -> None:
    network = small_network()
    assert network.half().dtype == torch.float16
    assert all(parameter.dtype == torch.float16 for parameter in network.parameters())
    assert network.to(torch.bfloat16).dtype == torch.bfloat16
    assert network.to("meta").device.type == "meta"


def test_data_parallel_without_devices_forwards() -> None:
    network, images = small_network(), random_images(2, 40, 40)
    parallel = nn.DataParallel(network)
    image, text = parallel(images.to(network.device), TOKENS)
    assert_close(image, network.encode_image(images), limit=1e-5)
    assert error(text, network.encode_text(TOKENS)) <= 1e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_data_parallel_over_two_devices() -> None:
    network, images = small_network().cuda(), random_images(4, 40, 40).cuda()
    image, _ = nn.DataParallel(network)(images, TOKENS.repeat(2, 1).cuda())
    assert error(image.gem, network.encode_image(images).gem) <= 1e-5


def test_compiles_into_one_graph() -> None:
    """Traced without a break; "eager" runs the graph as it is, so no compiler is needed."""
    network, images = small_network(), random_images(2, 40, 48)
    compiled = torch.compile(network.encode_image, fullgraph=True, backend="eager")
    with torch.no_grad():
        found = compiled(images)
    assert_close(found, network.encode_image(images), limit=1e-5)


# ---- knobs


def test_no_dual_block_is_plain_clip() -> None:
    features = small_network(GEMConfig(blocks=0)).encode_image(random_images(2, 40, 48))
    assert torch.equal(features.gem, features.clip)


@pytest.mark.parametrize(
    "gem",
    [
        GEMConfig(blocks=1),
        GEMConfig(blocks=3),
        GEMConfig(blocks=2, iters=0),
        GEMConfig(blocks=2, inv_temp=5.0),
        GEMConfig(blocks=2, streams="q"),
        GEMConfig(blocks=2, residual=False),
    ],
    ids=str,
)
def test_the_clip_stream_never_sees_the_gem_stream(gem: GEMConfig) -> None:
    images = random_images(2, 40, 48).double()
    plain = small_network(GEMConfig(blocks=0)).double().encode_image(images)
    found = small_network(gem).double().encode_image(images)
    assert error(found.clip, plain.clip) <= ROUNDING
    assert error(found.gem, plain.gem) > 1e-3


def test_every_setting_gives_other_maps() -> None:
    images = random_images(1, 40, 40).double()
    settings = [
        GEMConfig(blocks=blocks, iters=iters, inv_temp=inv_temp, streams=streams, residual=residual)
        for blocks, iters, inv_temp, streams, residual in product(
            (1, 3), (0, 1), (None, 9.0), ("qkv", "q", "kv"), (True, False)
        )
        if not (blocks == 3 and not residual)  # the same as with one block, see below
    ]
    found = [small_network(gem).double().encode_image(images).gem for gem in settings]
    for i, one in enumerate(found):
        for j in range(i):
            assert error(one, found[j]) > 1e-6, (settings[i], settings[j])


def test_the_order_of_the_streams_does_not_matter() -> None:
    images = random_images(1, 40, 40).double()
    one = small_network(GEMConfig(blocks=2, streams="qkv")).double().encode_image(images)
    two = small_network(GEMConfig(blocks=2, streams="vqk")).double().encode_image(images)
    assert_close(one, two)


def test_without_residual_only_the_last_dual_block_counts() -> None:
    """Each dual block reads the clip stream alone, so the depth changes nothing from one on."""
    images = random_images(2, 40, 48).double()
    one, two, three = (
        small_network(GEMConfig(blocks=blocks, residual=False)).double().encode_image(images)
        for blocks in (1, 2, 3)
    )
    assert_close(two, one)
    assert_close(three, one)


def test_without_residual_the_last_block_alone_makes_the_gem_stream() -> None:
    """The formula by hand: ln_post(attention(ln_1(clip before the last block))) proj."""
    images = random_images(2, 40, 40).double()
    network = small_network(GEMConfig(blocks=2, residual=False)).double()
    visual = network.visual
    seen: list[Tensor] = []
    last = visual.transformer.resblocks[-1]
    last.ln_1.register_forward_hook(lambda module, given, out: seen.append(out))
    features = network.encode_image(images)
    _, gem = last.attn(seen[0], Trunk(visual.transformer.resblocks, features.grid, {}))
    assert error(features.gem, visual.ln_post(gem) @ visual.proj) <= ROUNDING


def test_no_iterations_read_once() -> None:
    """iters=0 in one line: softmax(inv_temp N(q) N(q)^T) v."""
    q, v = torch.randn(2, 3, 7, 5).double(), torch.randn(2, 3, 7, 5).double()
    unit = q / q.norm(dim=-1, keepdim=True)
    expected = (4.0 * unit @ unit.mT).softmax(dim=-1) @ v
    assert error(self_self_attention(q[None], v, 4.0, iters=0), expected) <= ROUNDING


def test_the_adaptive_temperature_is_each_images_own() -> None:
    x = torch.randn(3, 5, 12).double()
    expected = x.norm(dim=-1).mean(dim=-1) / 4**0.5
    assert error(adaptive_inv_temp(x, 4)[:, 0, 0, 0], expected) <= ROUNDING


def test_as_many_dual_blocks_as_layers_and_no_more() -> None:
    small_network(GEMConfig(blocks=3))
    with pytest.raises(
        ValueError, match=r"4 dual blocks \(gem_depth=5\).*0 to 3.*gem_depth 1 to 4"
    ):
        GEMNetwork(CONFIG, GEMConfig(blocks=4))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"blocks": -1}, ValueError, "blocks is -1; expected 0 or more"),
        ({"iters": -2}, ValueError, "iters is -2; expected 0 or more"),
        ({"blocks": 1.0}, TypeError, r"blocks is 1\.0; expected a whole number"),
        ({"iters": True}, TypeError, "iters is True; expected a whole number"),
        (
            {"inv_temp": 0.0},
            ValueError,
            r"is 0\.0; expected a number in \[0.0001, 10000\], or None",
        ),
        ({"inv_temp": float("nan")}, ValueError, "is nan; expected a number"),
        ({"inv_temp": float("inf")}, ValueError, "is inf; expected a number"),
        ({"streams": ""}, ValueError, "one to three different letters of 'qkv'"),
        ({"streams": "qq"}, ValueError, "'qq'; expected one to three different letters"),
        ({"streams": "qx"}, ValueError, "'qx'; expected one to three different letters"),
    ],
)
def test_settings_out_of_range(
    changes: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        GEMConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        ("image", {"heads": 5}, "width 48, heads 5.*a width that the heads divide"),
        ("image", {"layers": 0}, "expected positive numbers"),
        ("image", {"patch": 41}, "size 40 with patch 41"),
        ("image", {"patch": 0}, "expected 1 <= patch <= size"),
        ("text", {"context": 1}, "context 1.*expected context >= 2"),
        ("text", {"vocab": 513}, "vocab 513.*vocab >= 514"),
        ("text", {"heads": 5}, "text tower with width 36, heads 5"),
        (None, {"activation": "relu"}, "'relu'; expected one of"),
        (None, {"embed": 0}, "embed is 0; expected at least 1"),
    ],
)
def test_architectures_that_cannot_be(
    where: str | None, changes: dict[str, object], message: str
) -> None:
    part: object = CONFIG if where is None else getattr(CONFIG, where)
    with pytest.raises(ValueError, match=message):
        replace(part, **changes)  # type: ignore[type-var]


def test_configurations_are_frozen_and_comparable() -> None:
    assert replace(CONFIG, embed=20) == CONFIG and hash(GEM) == hash(GEMConfig(blocks=2))
    with pytest.raises(AttributeError):
        CONFIG.embed = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig(20, "gelu", CONFIG.image, CONFIG.text)  # type: ignore[misc]


# ---- batches


@pytest.mark.parametrize("inv_temp", [None, 5.0], ids=["adaptive", "fixed"])
def test_an_image_does_not_see_its_neighbours(inv_temp: float | None) -> None:
    network = small_network(GEMConfig(blocks=3, inv_temp=inv_temp)).double()
    images = random_images(3, 40, 48).double()
    images[1] *= 50  # a neighbour of quite another norm
    together = network.encode_image(images)
    for i in range(3):
        alone = network.encode_image(images[i : i + 1])
        assert error(together.clip[i : i + 1], alone.clip) <= ROUNDING
        assert error(together.gem[i : i + 1], alone.gem) <= ROUNDING


def test_a_prompt_does_not_see_its_neighbours_nor_what_follows_its_end() -> None:
    network = small_network().double()
    together = network.encode_text(TOKENS)
    assert error(together[:1], network.encode_text(TOKENS[:1, :5])) <= ROUNDING
    other = TOKENS.clone()
    other[0, 5:] = 44
    assert error(network.encode_text(other), together) <= ROUNDING
