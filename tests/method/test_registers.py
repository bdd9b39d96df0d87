"""Test-time registers against a plain writing of them, and what each step is worth."""

from dataclasses import replace

import family_reference as reference
import pytest
import torch
from family_model import random_picture, random_tower
from family_reference import Tower, block_name, linear, norm, qkv
from test_methods import encoder, error
from torch import Tensor

from gem_lite.method.methods.registers import Registers

METHOD = Registers(longer=1.1, neurons=7)


def between(tower: Tower, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens before a block's MLP, and its neurons."""
    q, k, v = qkv(tower, block, x)
    y = x + reference.out(tower, block, reference.attend(q, k) @ v)
    name = block_name(block)
    hidden = linear(tower, f"{name}.mlp.c_fc", norm(tower, f"{name}.ln_2", y))
    if tower.activation == "quick_gelu":
        return y, hidden * torch.sigmoid(1.702 * hidden)
    return y, hidden * (1 + torch.erf(hidden / 2**0.5)) / 2


def registers(tower: Tower, image: Tensor, method: Registers) -> Tensor:
    """The last tokens, one neuron and one token at a time."""
    h = reference.stream(tower, image, "bicubic_antialias")
    lengths = h[-1].norm(dim=-1)
    middle = lengths.sort().values[(len(lengths) - 1) // 2]
    long = [i for i, length in enumerate(lengths) if length > method.longer * middle]
    blocks = 1 + (method.within - 1) * tower.layers // 12
    found = []
    for block in range(1, blocks + 1):
        neurons = between(tower, block, h[block - 1])[1]
        for number in range(neurons.shape[1]):
            score = sum(abs(float(neurons[i, number])) for i in long)
            found.append((score, block, number))
    chosen = sorted(found, reverse=True)[: method.neurons] if long else []
    zero = norm(tower, "ln_pre", torch.zeros(1, h[0].shape[1], dtype=h[0].dtype))
    x = torch.cat([h[0], zero])
    for block in range(1, tower.layers + 1):
        y, neurons = between(tower, block, x)
        for _, where, number in chosen:
            if where == block:
                largest = neurons[:, number].max()
                neurons[1:-1, number] = 0
                neurons[-1, number] = largest
        x = y + linear(tower, f"{block_name(block)}.mlp.c_proj", neurons)
    return x[:-1]


@pytest.fixture(scope="module")
def tower() -> Tower:
    return random_tower(5, 48, 13, 3, 8, 6, 80, 20, "gelu", gain=1.4)


@pytest.mark.parametrize("size", [(48, 48), (56, 88)])
@torch.no_grad()
def test_against_the_plain_writing(tower: Tower, size: tuple[int, int]) -> None:
    images = torch.stack([random_picture(name, size) for name in ("other", "more")])
    visual = encoder(tower, METHOD)
    found = visual(images)
    lengths = visual(images, keep=[13]).tokens[13].norm(dim=-1)
    assert (lengths > 1.1 * lengths.median(dim=1, keepdim=True).values).any(dim=1).all()
    for index, image in enumerate(images):
        expected = reference.project(tower, registers(tower, image, METHOD))
        assert error(found.gem[index], expected) <= 1e-10


@pytest.mark.parametrize("change", [{"neurons": 6}, {"within": 5}, {"longer": 1.3}])
@torch.no_grad()
def test_a_damaged_one_is_noticed(tower: Tower, change: dict[str, float]) -> None:
    image = random_picture("other", (48, 48))
    expected = reference.project(tower, registers(tower, image, METHOD))
    found = encoder(tower, replace(METHOD, **change))(image[None]).gem[0]
    assert error(found, expected) > 1e-4


@torch.no_grad()
def test_a_picture_without_outliers(tower: Tower) -> None:
    """Nothing moves: the tokens only see one more, which is not much."""
    image = random_picture("other", (48, 48))
    method = replace(METHOD, longer=100.0)
    features = encoder(tower, method)(image[None])
    expected = reference.project(tower, registers(tower, image, method))
    assert error(features.gem[0], expected) <= 1e-10
    assert 1e-6 < error(features.gem, features.clip) < 1
