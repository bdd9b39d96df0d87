"""Our own files: the header, strict and lean loading, saving after training."""

import copy
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import NAME, SMALL, header_of, shapes, state_of, write_open_clip, write_torchscript
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import small_model
from torch import Tensor, nn

import gem_lite
from gem_lite.checkpoints import ours as checkpoint
from gem_lite.checkpoints.assemble import expected_shapes
from gem_lite.checkpoints.header import Header
from gem_lite.checkpoints.ours import load, read_header, write
from gem_lite.method.config import ARCHITECTURES, ImageConfig, TextConfig
from gem_lite.method.methods.gem import GEMConfig

ROOT = Path(__file__).resolve().parents[2]
STATE = state_of()
WORDS = ["cat", "remote control"]


def images() -> Tensor:
    return torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of ours."""
    write(tmp_path / "ours.safetensors", STATE, header_of())
    return tmp_path / "ours.safetensors"


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# ----------------------------------------------------------------------------- the header


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gem": GEMConfig(blocks=0, iters=0, inv_temp=12.5, streams="v", residual=False)},
        {"config": replace(SMALL, activation="gelu"), "licence": 'ünïcode, "quotes" \n'},
    ],
)
def test_header_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    header = header_of(**changes)
    assert Header.from_json(header.to_json()) == header
    write(tmp_path / "a.safetensors", STATE, header)
    assert read_header(tmp_path / "a.safetensors") == header


def test_header_of_somebody_else(tmp_path: Path) -> None:
    path = write_open_clip(STATE, tmp_path / "a.safetensors")
    assert read_header(path) is None
    with pytest.raises(ValueError, match=r"a\.safetensors has no gem_lite header; convert it"):
        load(path)


def test_no_file(tmp_path: Path) -> None:
    for reader in (read_header, load):
        with pytest.raises(FileNotFoundError, match=r"no weight file at .*a\.safetensors"):
            reader(tmp_path / "a.safetensors")


def with_header(path: Path, text: str) -> Path:
    """The file with this text as its header."""
    save_file(STATE, path, metadata={"format": "pt", "gem_lite": text})
    return path


READERS: list[Callable[[Path], Any]] = [
    read_header,
    load,
    lambda path: gem_lite.create_gem_model(NAME, path),
]


def refused(path: Path, message: str) -> None:
    """Every reader refuses the file with a ValueError that names it."""
    for reader in READERS:
        with pytest.raises(ValueError, match=rf"(?s){path.name}.*{message}"):
            reader(path)


def test_newer_format(tmp_path: Path) -> None:
    content = {"format_version": 2, "all": "else", "is": "different"}
    path = with_header(tmp_path / "a.safetensors", json.dumps(content))
    refused(path, "format version 2 is newer than this package's 1; update the package")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "5", '"text"', "{}", "[" * 100_000])
def test_header_that_is_none(tmp_path: Path, text: str) -> None:
    refused(with_header(tmp_path / "a.safetensors", text), "the header is damaged")


FIELDS = [
    (),
    ("config",),
    ("config", "image"),
    ("config", "text"),
    ("gem",),
]


def damaged_headers() -> list[tuple[str, ...] | Any]:
    """Each value of the header in turn: where it stands, and something else to put there."""
    whole = json.loads(header_of().to_json())
    cases = []
    for place in FIELDS:
        inside = whole
        for step in place:
            inside = inside[step]
        for name, value in inside.items():
            others: list[Any] = [[1], {"a": 1}]
            others += [5] if isinstance(value, str | list | dict) else []
            others += ["2"] if not isinstance(value, str) else []
            others += [1.5, True] if type(value) is int else []
            others += [None] if name != "inv_temp" else []
            cases += [(*place, name, other) for other in others]
    cases += [
        ("mean", [0.1, 0.2]),
        ("std", [0.1, 0.2, "0.3"]),
        ("mean", [0.1, 0.2, float("nan")]),
        ("std", [0.1, 0.2, True]),
        ("config", "activation", "relu"),
        ("config", "image", "heads", 0),
        ("config", "image", "heads", 3),
        ("config", "text", "vocab", 5),
        ("gem", "streams", "qq"),
        ("gem", "blocks", -1),
        ("gem", "inv_temp", 0),
        ("gem", "inv_temp", 1e308),
        ("gem", "inv_temp", 1e-308),
        ("gem", "iters", 10**9),
        ("size", 2**40),
        ("size", 0),
        ("mean", [1e308, 0.5, 0.5]),
        ("mean", [10**400, 0.5, 0.5]),
        ("std", [0.5, 0.5, 0]),
        ("std", [0.5, 0.5, 1e-308]),
        ("std", [0.5, 0.5, -0.5]),
        ("licence", "x" * 100_000),
    ]
    return cases


@pytest.mark.parametrize("case", damaged_headers(), ids=lambda case: "-".join(map(str, case)))
def test_wrong_value_in_header(tmp_path: Path, case: tuple[Any, ...]) -> None:
    *place, name, other = case
    content = json.loads(header_of().to_json())
    inside = content
    for step in place:
        inside = inside[step]
    assert name in inside
    inside[name] = other
    with pytest.raises(ValueError):
        Header.from_json(json.dumps(content))


@pytest.mark.parametrize("place", FIELDS)
def test_missing_and_unknown_value_in_header(tmp_path: Path, place: tuple[str, ...]) -> None:
    whole = json.loads(header_of().to_json())
    inside = whole
    for step in place:
        inside = inside[step]
    for name in list(inside):
        content = copy.deepcopy(whole)
        target = content
        for step in place:
            target = target[step]
        del target[name]
        if place != ("gem",) and name not in ("method", "settings"):  # which have defaults
            with pytest.raises(ValueError, match="damaged"):
                Header.from_json(json.dumps(content))
        target["unheard_of"] = 1
        with pytest.raises(ValueError, match="damaged"):
            Header.from_json(json.dumps(content))


def test_wrong_value_is_refused_with_the_file(tmp_path: Path) -> None:
    content = json.loads(header_of().to_json())
    content["config"]["image"]["heads"] = 2.0
    path = with_header(tmp_path / "a.safetensors", json.dumps(content))
    refused(path, r"the header is damaged.*heads is 2\.0; expected int")


def test_more_dual_blocks_than_layers(tmp_path: Path) -> None:
    header = header_of(gem=GEMConfig(blocks=3))
    path = with_header(tmp_path / "a.safetensors", header.to_json())
    with pytest.raises(ValueError, match="3 dual blocks"):
        load(path)
    with pytest.raises(ValueError, match="gem_depth=4"):
        gem_lite.create_gem_model(NAME, path)


@pytest.mark.parametrize("kept", [0, 5, 100, 3000, -1])
def test_cut_short(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    for reader in READERS:
        with pytest.raises(ValueError, match="fetch"):
            reader(file)


# ---------------------------------------------------------------------------- the loading


def test_expected_shapes_of_every_architecture() -> None:
    for config in (SMALL, *ARCHITECTURES.values()):
        assert expected_shapes(config) == shapes(config)


def test_load(file: Path) -> None:
    network, header = load(file)
    assert header == header_of()
    assert_equal(network.state_dict(), STATE)
    assert not network.training
    assert (network.config, network.method) == (SMALL, GEMConfig(blocks=2))
    for parameter in network.parameters():
        assert parameter.is_leaf and parameter.requires_grad and not parameter.is_meta
        assert parameter.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_load_in_a_dtype(file: Path, dtype: torch.dtype) -> None:
    network, _ = load(file, dtype=dtype)
    assert_equal(network.state_dict(), {name: tensor.to(dtype) for name, tensor in STATE.items()})


def test_load_with_other_settings(file: Path) -> None:
    settings = GEMConfig(blocks=1, iters=3, streams="k")
    network, header = load(file, method=settings)
    assert network.method == settings and header.gem == GEMConfig(blocks=2)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("ln_final.bias", None, r"missing ln_final\.bias, expected shape \[32\]"),
        ("visual.extra", torch.zeros(2, 3), r"unknown tensor visual\.extra of shape \[2, 3\]"),
        ("extra", torch.zeros(()), r"unknown tensor extra of shape \[\]"),
        ("visual.proj", torch.zeros(48, 64), r"visual\.proj has shape \[48, 64\], expected \[64"),
        ("logit_scale", torch.zeros(1), r"logit_scale has shape \[1\], expected \[\]"),
    ],
)
def test_load_is_strict(tmp_path: Path, name: str, tensor: Tensor | None, message: str) -> None:
    state = {**STATE, name: tensor}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    metadata = {"gem_lite": header_of().to_json()}
    save_file(kept, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=rf"a\.safetensors does not fit the model: {message}"):
        load(tmp_path / "a.safetensors")


def test_weights_are_not_a_foreign_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SMALL)
    path = write_open_clip(STATE, tmp_path / "a.safetensors")
    model = gem_lite.create_gem_model("ViT-B/32", path, activation="quick_gelu")
    with path.open("r+b") as opened:
        opened.write(bytes(path.stat().st_size))
    assert_equal(model.network.state_dict(), STATE)


# Reads the memory that belongs to no file, after every single operation of PyTorch.
PEAK = """
import ctypes, gc, os, sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
import gem_lite
from gem_lite.checkpoints.ours import load

torch.set_num_threads(1)

def anonymous():
    with open("/proc/self/statm") as file:
        _, resident, shared = file.read().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

class Watch(TorchDispatchMode):
    peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        Watch.peak = max(Watch.peak, anonymous())
        return result

path, name, *cases = sys.argv[1:]
with Watch():  # once before, so that what PyTorch imports on first use is not counted
    gem_lite.create_gem_model(name, os.path.join(os.path.dirname(path), "small.safetensors"))

def measure(how, precision):
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what was freed before would be used again, and not show
    Watch.peak = 0
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    start = anonymous()
    with Watch():
        if how == "load":
            network = load(path, dtype=dtype)[0]
        elif how == "create_gem_model":
            network = gem_lite.create_gem_model(name, path, precision=precision).network
        else:  # two copies, to see that they would show
            from safetensors.torch import load as from_bytes
            state = from_bytes(open(path, "rb").read())
            network = load(path, dtype=dtype)[0]
            network.load_state_dict(state)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    largest = max(p.numel() * p.element_size() for p in network.parameters())
    print(how, precision, Watch.peak - start, size, largest, flush=True)

for case in cases:  # each in a process of its own, for which PyTorch is imported already
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, case
    else:
        measure(*case.split("-"))
        os._exit(0)
"""
CASES = [
    f"{how}-{precision}"
    for how in ("load", "create_gem_model", "twice")
    for precision in ("fp32", "bf16")
]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """57 MB in tensors of at most 9 MB, and a small file beside it."""
    folder = tmp_path_factory.mktemp("large")
    config = replace(
        SMALL,
        image=ImageConfig(size=32, patch=16, width=768, layers=2, heads=2, mlp_width=3072),
        text=TextConfig(context=16, vocab=600, width=32, layers=1, heads=1, mlp_width=32),
    )
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) for name, shape in shapes(config).items()
    }
    header = header_of(config=config, gem=GEMConfig(blocks=2))
    write(folder / "large.safetensors", state, header)
    write(folder / "small.safetensors", STATE, header_of())
    return folder / "large.safetensors"


@pytest.fixture(scope="module")
def peaks(large: Path) -> dict[str, list[int]]:
    """Most memory in use while loading, size of the model, size of its largest tensor."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(large), NAME, *CASES],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {f"{how}-{precision}": [*map(int, rest)] for how, precision, *rest in lines}


MEMORY = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")


@MEMORY
@pytest.mark.parametrize("how", ["load", "create_gem_model"])
def test_memory_peak(peaks: dict[str, list[int]], how: str) -> None:
    most, size, largest = peaks[f"{how}-bf16"]
    assert size > 28e6
    assert size * 0.9 < most < size * 1.05 + largest + 8e6


@MEMORY
@pytest.mark.parametrize("how", ["load", "create_gem_model"])
def test_a_file_of_the_dtype_asked_for_is_not_copied(peaks: dict[str, list[int]], how: str) -> None:
    most, size, _ = peaks[f"{how}-fp32"]
    assert size > 56e6
    assert most < 8e6


def test_training_leaves_the_file_as_it_is(file: Path) -> None:
    before = file.read_bytes()
    model = gem_lite.create_gem_model(NAME, file)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert file.read_bytes() == before


def test_a_file_may_be_replaced_while_its_model_is_in_use(file: Path) -> None:
    model = gem_lite.create_gem_model(NAME, file)
    expected = model(images(), WORDS)
    other = gem_lite.create_gem_model(NAME, file)
    with torch.no_grad():
        other.network.visual.proj.mul_(-1)
    gem_lite.save(other, file)
    assert torch.equal(model(images(), WORDS), expected)
    assert not torch.equal(gem_lite.create_gem_model(NAME, file)(images(), WORDS), expected)
    file.unlink()
    assert torch.equal(model(images(), WORDS), expected)


@MEMORY
def test_memory_peak_would_show_a_second_copy(peaks: dict[str, list[int]]) -> None:
    most, size, _ = peaks["twice-fp32"]
    assert most > size * 0.9
    most, size, _ = peaks["twice-bf16"]
    assert most > size * 2.9  # the model, and the file's tensors in float32


# ----------------------------------------------------------------------------- the saving


def trained(model: gem_lite.GEMPredictor) -> None:
    """One step of fine-tuning on both towers."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images(), WORDS, normalize=False).square().mean().backward()
    optimizer.step()
    model.eval()


def test_save_after_training(file: Path, tmp_path: Path) -> None:
    model = gem_lite.create_gem_model(NAME, file)
    before = model(images(), WORDS)
    trained(model)
    expected = model(images(), WORDS)
    assert not torch.equal(before, expected)
    gem_lite.save(model, tmp_path / "new.safetensors")
    other = gem_lite.create_gem_model(NAME, tmp_path / "new.safetensors")
    assert_equal(other.state_dict(), model.state_dict())
    assert torch.equal(other(images(), WORDS), expected)
    assert torch.equal(other.encode_text(WORDS), model.encode_text(WORDS))


def test_save_over_the_file_in_use(file: Path) -> None:
    model = gem_lite.create_gem_model(NAME, file)
    trained(model)
    expected = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    gem_lite.save(model, file)
    assert_equal(model.network.state_dict(), expected)
    assert_equal(load(file)[0].state_dict(), expected)
    gem_lite.save(gem_lite.create_gem_model(NAME, file), file)
    assert_equal(load(file)[0].state_dict(), expected)


def test_saved_file_is_clips(file: Path, tmp_path: Path) -> None:
    """What open_clip needs: CLIP's own names and shapes, in a plain safetensors file."""
    gem_lite.save(gem_lite.create_gem_model(NAME, file), tmp_path / "new.safetensors")
    state = load_file(tmp_path / "new.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(SMALL)
    with safe_open(tmp_path / "new.safetensors", framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_the_same_model_is_the_same_bytes(file: Path, tmp_path: Path) -> None:
    """safetensors hashes the metadata's keys anew for each file, which half of the time shows."""
    model = gem_lite.create_gem_model(NAME, file)
    written = set()
    for _ in range(8):
        gem_lite.save(model, tmp_path / "new.safetensors")
        written.add((tmp_path / "new.safetensors").read_bytes())
    assert len(written) == 1


def test_saved_header(file: Path, tmp_path: Path) -> None:
    model = gem_lite.create_gem_model(
        NAME, file, gem_depth=2, ss_attn_iter=0, ss_attn_temp=9.0, gem_streams="kv",
        gem_residual=False,
    )  # fmt: skip
    gem_lite.save(model, tmp_path / "new.safetensors")
    settings = GEMConfig(blocks=1, iters=0, inv_temp=9.0, streams="kv", residual=False)
    found = read_header(tmp_path / "new.safetensors")
    assert found is not None
    assert asdict(found) == asdict(header_of(gem=settings, verified="saved from memory"))
    other = gem_lite.create_gem_model(NAME, tmp_path / "new.safetensors")
    assert other.network.method == settings
    assert torch.equal(other(images(), WORDS), model(images(), WORDS))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_save_keeps_the_dtype(file: Path, tmp_path: Path, precision: Any) -> None:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    model = gem_lite.create_gem_model(NAME, file, precision=precision)
    gem_lite.save(model, tmp_path / "new.safetensors")
    expected = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    assert_equal(load_file(tmp_path / "new.safetensors"), expected)
    other = gem_lite.create_gem_model(NAME, tmp_path / "new.safetensors")
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}


def test_save_from_random_and_foreign_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SMALL)
    archive = write_torchscript(STATE, tmp_path / "a.pt")
    for model in (
        gem_lite.create_gem_model("ViT-B/32-quickgelu", gem_depth=2),
        gem_lite.create_gem_model("ViT-B/32", archive),
    ):
        gem_lite.save(model, tmp_path / "new.safetensors")
        other = gem_lite.create_gem_model("ViT-B/32", tmp_path / "new.safetensors")
        assert_equal(other.state_dict(), model.state_dict())
        assert other.network.config.activation == "quick_gelu"
        assert torch.equal(other(images(), WORDS), model(images(), WORDS))


def test_save_a_model_in_data_parallel(file: Path, tmp_path: Path) -> None:
    model = gem_lite.create_gem_model(NAME, file)
    gem_lite.save(nn.DataParallel(model), tmp_path / "new.safetensors")  # type: ignore[arg-type]
    assert (tmp_path / "new.safetensors").read_bytes().endswith(file.read_bytes()[-5000:])
    assert_equal(load(tmp_path / "new.safetensors")[0].state_dict(), STATE)


def test_save_something_else(file: Path, tmp_path: Path) -> None:
    model = gem_lite.create_gem_model(NAME, file)
    others: list[Any] = [
        model.network,
        model.state_dict(),
        nn.Linear(2, 2),
        nn.DataParallel(nn.Linear(2, 2)),
        "model",
        None,
    ]
    for other in others:
        with pytest.raises(TypeError, match=r"expected a model from create_gem_model\(\), got"):
            gem_lite.save(other, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_save_to_no_folder(file: Path, tmp_path: Path) -> None:
    model = gem_lite.create_gem_model(NAME, file)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to write new.safetensors to"):
        gem_lite.save(model, tmp_path / "nowhere" / "new.safetensors")


@pytest.mark.parametrize("there", [True, False])
def test_save_that_dies(file: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def die(tensors: Any, path: Path, **kwargs: Any) -> None:
        path.write_bytes(b"half a file")
        raise OSError("the disk is full")

    model = gem_lite.create_gem_model(NAME, file)
    target = file if there else file.with_name("new.safetensors")
    before = file.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", die)
    with pytest.raises(OSError, match="disk is full"):
        gem_lite.save(model, target)
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == before


def test_save_a_model_that_was_changed_in_shape(file: Path) -> None:
    """A file that could not be loaded again is not written."""
    model = gem_lite.create_gem_model(NAME, file)
    model.network.visual.proj = nn.Parameter(torch.zeros(64, 10))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"visual\.proj has shape \[64, 10\], expected \[64, 48"):
        gem_lite.save(model, file)
    assert file.read_bytes() == before


def test_file_layout(file: Path) -> None:
    """Eight bytes of length, JSON, numbers: what the format's description says, read by hand."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    described = json.loads(content[8 : 8 + length])
    metadata = described.pop("__metadata__")
    assert set(metadata) == {"format", "gem_lite", "gem_lite_digest"}
    assert set(described) == set(STATE)
    start, end = described["ln_final.bias"]["data_offsets"]
    numbers = torch.frombuffer(
        bytearray(content[8 + length + start : 8 + length + end]), dtype=torch.float32
    )
    assert torch.equal(numbers, STATE["ln_final.bias"])


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    """Tied weights, or views of one tensor, are written apart, each whole."""
    model = small_model()
    norm = model.network.visual.ln_post
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, len(norm.weight)))
    norm.bias = norm.weight
    gem_lite.save(model, tmp_path / "tied.safetensors")
    network, _ = load(tmp_path / "tied.safetensors")
    assert torch.equal(network.visual.ln_post.bias, norm.weight)
    assert torch.equal(network.visual.ln_post.weight, norm.weight)
