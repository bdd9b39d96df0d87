"""Layers edited as a researcher edits them: published files load, what is new is kept and saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import NAME, SMALL, header_of, state_of, write_hugging_face, write_open_clip
from safetensors.torch import load_file
from small import small_model
from torch import Tensor, nn

import gem_lite
from gem_lite.checkpoints import assemble as assemble_module
from gem_lite.checkpoints.assemble import assemble, build, check_shapes, expected_shapes, place
from gem_lite.checkpoints.ours import LazyTensors, load, write
from gem_lite.method import model as model_module
from gem_lite.method.config import ARCHITECTURES
from gem_lite.method.image import ImageEncoder
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.model import GEMNetwork

STATE = state_of()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of ours, from before any edit."""
    write(tmp_path / "ours.safetensors", STATE, header_of())
    return tmp_path / "ours.safetensors"


def registers(encoder: ImageEncoder) -> None:
    encoder.registers = nn.Parameter(torch.full((4, 64), 0.25))


def layer_weights(encoder: ImageEncoder) -> None:
    encoder.layer_weights = nn.Parameter(torch.ones(2))


def buffer_from_a_list(encoder: ImageEncoder) -> None:
    encoder.register_buffer("offsets", torch.tensor([1, 2, 3]), persistent=False)


def kept_buffer(encoder: ImageEncoder) -> None:
    encoder.register_buffer("counts", torch.tensor([1, 2, 3]))


def numbers_of_a_schedule(encoder: ImageEncoder) -> None:
    encoder.drop = torch.linspace(0, 0.5, 3).tolist()


def numbers_of_a_weight(encoder: ImageEncoder) -> None:
    encoder.numbers = torch.empty(3).fill_(2.0).tolist()


def plain_attribute(encoder: ImageEncoder) -> None:
    encoder.scales = [torch.tensor(0.5), torch.empty(2).fill_(3.0)]


def adapter(encoder: ImageEncoder) -> None:
    encoder.adapter = nn.Linear(64, 8)
    nn.init.constant_(encoder.adapter.weight, 0.125)


EDITS: dict[str, tuple[Callable[[ImageEncoder], None], dict[str, Any]]] = {
    "registers": (registers, {"registers": torch.full((4, 64), 0.25)}),
    "layer weights": (layer_weights, {"layer_weights": torch.ones(2)}),
    "buffer": (buffer_from_a_list, {"offsets": torch.tensor([1, 2, 3])}),
    "kept buffer": (kept_buffer, {"counts": torch.tensor([1, 2, 3])}),
    "schedule": (numbers_of_a_schedule, {"drop": [0.0, 0.25, 0.5]}),
    "numbers": (numbers_of_a_weight, {"numbers": [2.0, 2.0, 2.0]}),
    "attribute": (plain_attribute, {"scales": [torch.tensor(0.5), torch.full((2,), 3.0)]}),
    "adapter": (adapter, {"adapter.weight": torch.full((8, 64), 0.125)}),
}
SAVED = {
    "registers": "visual.registers",
    "layer weights": "visual.layer_weights",
    "kept buffer": "visual.counts",
    "adapter": "visual.adapter.weight",
}


def edit(monkeypatch: pytest.MonkeyPatch, change: Callable[[ImageEncoder], None]) -> None:
    """The image encoder with lines added at the end of its constructor."""

    class Edited(ImageEncoder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            change(self)

    monkeypatch.setattr(model_module, "ImageEncoder", Edited)


def value_of(network: GEMNetwork, name: str) -> Any:
    *parents, leaf = name.split(".")
    return getattr(network.visual.get_submodule(".".join(parents)), leaf)


def assert_same(value: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert not value.is_meta and value.dtype == expected.dtype and torch.equal(value, expected)
    elif isinstance(expected, list):
        for one, other in zip(value, expected, strict=True):
            assert_same(one, other)
    else:
        assert value == expected


@pytest.mark.parametrize("name", EDITS)
def test_files_load_unchanged_and_what_is_new_stays(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, values = EDITS[name]
    edit(monkeypatch, change)
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SMALL)
    paths = [
        file,
        write_open_clip(STATE, tmp_path / "open.safetensors"),
        write_hugging_face(STATE, tmp_path / "hf"),
    ]
    for path in paths:
        name = NAME if path is file else "ViT-B/32"
        network = gem_lite.create_gem_model(name, path, activation="quick_gelu").network
        for key, expected in values.items():
            assert_same(value_of(network, key), expected)
        state = network.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in STATE.items())
        assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", SAVED)
def test_what_is_new_is_saved_and_loaded(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        edit(patch, EDITS[name][0])
        model = gem_lite.create_gem_model(NAME, file)
        trained = model.network.state_dict()[SAVED[name]]
        trained.add_(1)
        gem_lite.save(model, tmp_path / "new.safetensors")
        assert torch.equal(load_file(tmp_path / "new.safetensors")[SAVED[name]], trained)
        for network in (
            load(tmp_path / "new.safetensors")[0],
            gem_lite.create_gem_model(NAME, tmp_path / "new.safetensors").network,
        ):
            assert torch.equal(network.state_dict()[SAVED[name]], trained)
    # The package without the edit has no place for it, and names it.
    with pytest.raises(ValueError, match=rf"new\.safetensors .*unknown tensor {SAVED[name]}"):
        gem_lite.create_gem_model(NAME, tmp_path / "new.safetensors")


def test_a_new_tensor_of_another_shape_than_the_files(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(monkeypatch, registers)
    gem_lite.save(gem_lite.create_gem_model(NAME, file), tmp_path / "new.safetensors")
    edit(monkeypatch, lambda encoder: setattr(encoder, "registers", nn.Parameter(torch.ones(2))))
    with pytest.raises(ValueError, match=r"visual\.registers has shape \[4, 64\], expected \[2\]"):
        gem_lite.create_gem_model(NAME, tmp_path / "new.safetensors")


def test_a_layer_taken_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(monkeypatch, lambda encoder: delattr(encoder, "ln_post"))
    with pytest.raises(ValueError, match=r"unknown tensor visual\.ln_post\.bias"):
        load(file)


def test_precision_of_what_is_new(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's `.to(dtype)`: floating point follows, whole numbers stay."""
    edit(monkeypatch, lambda encoder: (registers(encoder), kept_buffer(encoder)))
    visual = gem_lite.create_gem_model(NAME, file, precision="bf16").network.visual
    assert (visual.registers.dtype, visual.counts.dtype) == (torch.bfloat16, torch.int64)


def test_random_weights_keep_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SMALL)
    torch.manual_seed(0)
    plain = gem_lite.create_gem_model("ViT-B/32", gem_depth=2).network.state_dict()
    edit(monkeypatch, registers)
    torch.manual_seed(0)
    edited = gem_lite.create_gem_model("ViT-B/32", gem_depth=2).network.state_dict()
    assert torch.equal(edited.pop("visual.registers"), torch.full((4, 64), 0.25))
    assert all(torch.equal(edited[key], tensor) for key, tensor in plain.items())


@pytest.mark.parametrize("kind", ["parameter", "buffer", "attribute"])
def test_what_has_no_numbers_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def empty(encoder: ImageEncoder) -> None:
        tensor = torch.zeros(3, device="meta")
        if kind == "buffer":
            encoder.register_buffer("late", tensor, persistent=False)
        else:
            encoder.late = nn.Parameter(tensor) if kind == "parameter" else tensor

    edit(monkeypatch, empty)
    with pytest.raises(ValueError, match=r"visual\.late of the network is on the meta device"):
        load(file)


def test_an_error_of_the_constructor_is_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(encoder: ImageEncoder) -> None:
        raise RuntimeError("a mistake of the researcher's")

    edit(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="a mistake of the researcher's"):
        load(file)


@pytest.mark.parametrize(("change", "times"), [(None, 1), (registers, 1), (adapter, 2)])
def test_networks_are_built_without_memory_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[ImageEncoder], None] | None, times: int
) -> None:
    """A second, full construction only where a layer of the researcher's needs its numbers."""
    built = []

    class Counted(GEMNetwork):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            built.append(self)

    if change is not None:
        edit(monkeypatch, change)
    monkeypatch.setattr(assemble_module, "GEMNetwork", Counted)
    network = build(SMALL, GEMConfig(blocks=2))
    assert len(built) == times
    state = network.state_dict()
    assert {name for name, tensor in state.items() if tensor.is_meta} == set(STATE)


@pytest.mark.parametrize("config", [SMALL, *ARCHITECTURES.values()])
def test_expected_shapes_are_the_networks(config: Any) -> None:
    state = build(config, GEMConfig(blocks=2)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected_shapes(config)


def test_sizes_are_checked_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(assemble_module, "GEMNetwork", refuse)
    check_shapes(expected_shapes(SMALL), SMALL, where="here")
    with pytest.raises(ValueError, match=r"here does not fit the model: missing logit_scale"):
        check_shapes({str(index): () for index in range(9)}, SMALL, where="here")


def test_each_tensor_of_a_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = LazyTensors.__getitem__

    def count(tensors: LazyTensors, name: str) -> Tensor:
        reads.append(name)
        return read(tensors, name)

    monkeypatch.setattr(LazyTensors, "__getitem__", count)
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SMALL)
    gem_lite.create_gem_model("ViT-B/32", write_hugging_face(STATE, tmp_path / "hf"))
    assert len(reads) == len(set(reads)) > len(STATE)


def test_integers_of_clips_are_refused() -> None:
    state = {**STATE, "ln_final.bias": torch.zeros(32).int()}
    with pytest.raises(ValueError, match=r"ln_final\.bias holds torch\.int32; expected floating"):
        assemble(state, SMALL, GEMConfig(blocks=1), dtype=torch.float32, device="cpu")


def test_another_method_keeps_what_an_edit_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters and buffers of one's own, after `with_gem`: the same numbers, none lost."""
    real = ImageEncoder.__init__

    def init(self: ImageEncoder, *arguments: Any) -> None:
        real(self, *arguments)
        self.register_buffer("offsets", torch.tensor([1.0, 2.0]), persistent=False)
        self.registers = nn.Parameter(torch.zeros(4, 48))

    monkeypatch.setattr(ImageEncoder, "__init__", init)
    model = small_model()
    with torch.no_grad():
        model.network.visual.registers.fill_(3.0)
    other = model.with_gem(blocks=1)
    assert other.network.visual.offsets.tolist() == [1.0, 2.0]
    assert other.network.visual.registers.data_ptr() == model.network.visual.registers.data_ptr()
    assert (other.network.visual.registers == 3).all()
    assert other.network.transformer is model.network.transformer
    model.network.visual.transformer.resblocks[0].adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="unknown tensor .*adapter"):
        model.with_gem(blocks=1)


def test_placing_leaves_the_others_as_they_are() -> None:
    """The same objects, frozen or not; where a name is unknown, nothing is placed."""
    network = small_model().network
    network.visual.proj.requires_grad_(False)
    before = network.state_dict(keep_vars=True)
    new = torch.ones_like(network.visual.proj)
    with pytest.raises(ValueError, match=r"the network has no visual\.prj"):
        place(network, {"visual.proj": new, "visual.prj": new})
    assert network.visual.proj is before["visual.proj"]
    place(network, {"visual.proj": new})
    after = network.state_dict(keep_vars=True)
    assert {name for name in before if after[name] is not before[name]} == {"visual.proj"}
    assert after["visual.proj"].data_ptr() == new.data_ptr()
    assert not network.visual.proj.requires_grad
