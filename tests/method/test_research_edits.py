"""What a researcher changes, done to a copy of `method/` as they would, with the lines it costs."""

import difflib
import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import gem_lite.method
from gem_lite.method.config import ImageConfig
from gem_lite.method.image import ImageEncoder
from gem_lite.method.methods import make_method

SOURCE = Path(gem_lite.method.__file__).parent
IMAGES = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(1)).double()
Edit = list[tuple[str, str, str]]  # file, what stands there, what comes in its place

ATTEND = "        return F.scaled_dot_product_attention(inv_temp * x, x, values, scale=1.0)\n"
STEP = "                clip, gem = block(clip, gem, trunk)\n"
CLASS_TOKEN = "        token = repeat(self.class_embedding"
LN_PRE = "        clip = self.ln_pre(x)\n"
PROJECT = "        return ImageFeatures(self.project(clip), self.project(gem), grid, tokens)\n"
PATCH = "        self.patch = config.patch\n"

NEIGHBOURS: Edit = [
    (
        "attention.py",
        ATTEND,
        "        bias = gaussian_window(grid, 5.0, x)\n"
        "        return F.scaled_dot_product_attention(inv_temp * x, x, values, bias, scale=1.0)\n",
    ),
    (
        "attention.py",
        "from .replace import replaceable\n",
        "from .replace import replaceable\nfrom .tokens import gaussian_window\n",
    ),
]
LAYER_WEIGHTS: Edit = [
    (
        "image.py",
        PATCH,
        PATCH + "        self.layer_weights = nn.Parameter(torch.ones(config.layers))\n",
    ),
    (
        "image.py",
        STEP,
        "                before = gem\n"
        + STEP
        + "                gem = before + self.layer_weights[number - 1] * (gem - before)\n",
    ),
]
REGISTERS: Edit = [
    (
        "image.py",
        PATCH,
        PATCH + "        self.registers = nn.Parameter(torch.zeros(4, config.width))\n",
    ),
    (
        "image.py",
        LN_PRE,
        '        registers = repeat(self.registers, "r d -> b r d", b=x.shape[0])\n'
        "        clip = self.ln_pre(torch.cat([x, registers], dim=1))\n",
    ),
    (
        "image.py",
        PROJECT,
        "        clip, gem = clip[:, :-4], gem[:, :-4]\n" + PROJECT,
    ),
]
EARLY_EXIT: Edit = [
    (
        "image.py",
        "        for number, block in enumerate(blocks, start=1):\n",
        "        for number, block in enumerate(blocks[:-1], start=1):\n",
    )
]

GEM_HEADS = """        streams = torch.stack([getattr(heads, stream) for stream in self.streams])
        inv_temp = self.inv_temp or maths.adaptive_inv_temp(heads.x, heads.q.shape[-1])
        return maths.self_self_attention(
            streams, heads.v, inv_temp, iters=self.iters, grid=heads.trunk.grid
        )
"""
GEM_IMPORT = "from ..base import Heads, Method, letters, positive\n"
SCLIP: Edit = [
    ("methods/gem.py", GEM_IMPORT, GEM_IMPORT.replace("Method,", "Method, attend,")),
    (
        "methods/gem.py",
        GEM_HEADS,
        "        q, k, v = heads[:3]\n        return attend(q, q, v) + attend(k, k, v)\n",
    ),
]
NACLIP: Edit = [
    (
        "methods/gem.py",
        GEM_IMPORT,
        "from ..base import Heads, Method, attend, letters, positive\n"
        "from ..tokens import gaussian_window\n",
    ),
    (
        "methods/gem.py",
        GEM_HEADS,
        "        window = gaussian_window(heads.trunk.grid, 5.0, heads.k)\n"
        "        return attend(heads.k, heads.k, heads.v, bias=window)\n",
    ),
    (
        "blocks.py",
        "        gem = gem + gem_attn if self.method.residual else gem_attn\n",
        "        gem = gem_attn\n",
    ),
]
ALL_MAPS: Edit = [
    (
        "image.py",
        "    tokens: dict[int, Tensor]  #",
        "    attention: dict[int, Tensor]  # [b, h, n, n] of each block\n"
        "    tokens: dict[int, Tensor]  #",
    ),
    ("image.py", "base import Method, Trunk\n", "base import Method, Trunk, weights\n"),
    ("image.py", "        gem = clip\n", "        gem, maps = clip, {}\n"),
    (
        "image.py",
        "            if number <= self.plain_blocks:\n",
        "            q, k, *_ = Trunk(blocks, grid, {number - 1: clip}).heads(number)\n"
        "            maps[number] = weights(q, k)\n"
        "            if number <= self.plain_blocks:\n",
    ),
    ("image.py", PROJECT, PROJECT.replace("grid, tokens", "grid, maps, tokens")),
]


def edited(edit: Edit, folder: Path, name: str) -> tuple[ModuleType, int, int]:
    """A copy of the folder with the edit, imported; the lines it costs, and the files."""
    copy = folder / name
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in edit:
        text = (copy / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, (file, old)
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
    lines = 0
    files = {file for file, _, _ in edit}
    for file in files:
        before = (SOURCE / file).read_text(encoding="utf-8").splitlines()
        after = (copy / file).read_text(encoding="utf-8").splitlines()
        lines += sum(line.startswith("+ ") for line in difflib.ndiff(before, after))
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{name}.image"), lines, len(files)
    finally:
        sys.path.remove(str(folder))


def features(module: ModuleType, name: str) -> tuple[Any, torch.Tensor]:
    """A small tower with weights that follow from its names, and its gem stream."""
    config = importlib.import_module(f"{name}.config").ImageConfig(
        size=40, patch=8, width=48, layers=3, heads=4, mlp_width=56
    )
    method = importlib.import_module(f"{name}.methods.gem").GEMConfig(blocks=2)
    visual = module.ImageEncoder(config, 20, "quick_gelu", method).double()
    for key, tensor in visual.named_parameters():
        if key in ("layer_weights", "registers"):
            continue  # initialised by the edit
        generator = torch.Generator().manual_seed(len(key) + sum(map(ord, key)))
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.data = 0.2 * noise + (key.startswith("ln") or ".ln_" in key)
    return visual, visual(IMAGES).gem


@pytest.mark.parametrize(
    ("name", "edit", "most_lines", "most_files"),
    [
        ("neighbours", NEIGHBOURS, 5, 2),
        ("layer_weights", LAYER_WEIGHTS, 4, 1),
        ("registers", REGISTERS, 8, 1),
        ("early_exit", EARLY_EXIT, 5, 1),
    ],
)
def test_edits_work_within_their_budget(
    name: str, edit: Edit, most_lines: int, most_files: int, tmp_path: Path
) -> None:
    module, lines, files = edited(edit, tmp_path, f"copy_{name}")
    assert lines <= most_lines and files <= most_files
    visual, gem = features(module, f"copy_{name}")
    plain, _, _ = edited([], tmp_path, f"plain_{name}")
    _, expected = features(plain, f"plain_{name}")
    assert gem.shape == expected.shape and gem.isfinite().all()
    same = torch.allclose(gem, expected, rtol=0, atol=1e-12)
    assert same == (name == "layer_weights")  # weights of one change nothing
    gem.square().sum().backward()
    for key in ("layer_weights", "registers"):
        if hasattr(visual, key):
            assert getattr(visual, key).grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "edit", "most_lines", "most_files"),
    [("sclip", SCLIP, 4, 1), ("naclip", NACLIP, 12, 2)],
)
def test_published_methods_as_edits_of_gem(
    name: str, edit: Edit, most_lines: int, most_files: int, tmp_path: Path
) -> None:
    """What another paper changes, changed in GEM's own file, is that paper's method."""
    module, lines, files = edited(edit, tmp_path, f"as_{name}")
    assert lines <= most_lines and files <= most_files
    visual, gem = features(module, f"as_{name}")
    method = make_method(name, {"blocks": 2, "mlp": False, "positions": "bicubic_antialias"})
    config: Any = ImageConfig(size=40, patch=8, width=48, layers=3, heads=4, mlp_width=56)
    ours = ImageEncoder(config, 20, "quick_gelu", method).double()
    ours.load_state_dict(visual.state_dict())
    assert torch.allclose(ours(IMAGES).gem, gem, rtol=0, atol=1e-12)


def test_all_attention_maps_out(tmp_path: Path) -> None:
    module, lines, files = edited(ALL_MAPS, tmp_path, "all_maps")
    assert lines <= 12 and files <= 2
    visual, _ = features(module, "all_maps")
    maps = visual(IMAGES).attention
    assert list(maps) == [1, 2, 3]
    for each in maps.values():
        assert each.shape == (2, 4, 36, 36)
        assert torch.allclose(each.sum(dim=-1), torch.ones(2, 4, 36, dtype=torch.float64))
    cut = visual(IMAGES).cut(slice(1))
    assert all(torch.equal(cut.attention[number], maps[number][:1]) for number in maps)


def test_what_costs_no_line() -> None:
    """Streams, depth, residual and MLP are settings; attention maps come from a call."""
    from small import random_images, small_model

    model, images = small_model(), random_images(1, 40, 48)
    before = model.encode_image(images).gem
    for settings in ({"streams": "qk"}, {"blocks": 1}, {"residual": False}, {"mlp": True}):
        other = model.with_gem(**settings)
        assert other.method != model.method
        assert not torch.allclose(other.encode_image(images).gem, before)
    (state,) = model.network.block_states(images, [3])
    weights = (state.q @ state.k.mT / state.q.shape[-1] ** 0.5).softmax(dim=-1)
    assert torch.allclose(state.attention, weights)
    assert state.tokens.shape[1] == 1 + state.grid[0] * state.grid[1]
