"""Reading PyTorch's own files: layouts (a) and (b), hostile files, damaged files."""

import errno
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import (
    Call,
    Node,
    as_archived,
    hugging_face_state,
    pickled,
    rewrite_zip,
    state_of,
    torchscript_module,
    write_hugging_face,
    write_open_clip,
    write_torchscript,
    write_training_checkpoint,
)
from torch import Tensor, nn

from gem_lite.checkpoints.others import read_source

STATE = state_of()


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, and the same values and dtypes under them."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


ARCHIVED = {name: as_archived(name, tensor) for name, tensor in STATE.items()}


# ------------------------------------------------------------------ (a) TorchScript archives


@pytest.fixture
def no_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every door to TorchScript's interpreter is shut."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the archive's code was about to be loaded")

    for name in ("import_ir_module", "import_ir_module_from_buffer"):
        monkeypatch.setattr(torch._C, name, refuse)
    monkeypatch.setattr(torch.jit, "load", refuse)


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


@pytest.mark.parametrize("make", ["trace", "script"])
def test_archive(tmp_path: Path, make: str, no_jit: None) -> None:
    path = tmp_path / "archive.pt"
    if make == "trace":
        write_torchscript(STATE, path)
    else:
        scripted(torchscript_module(STATE), path)
    with zipfile.ZipFile(path) as archive:  # what makes it an archive with code
        assert any("/code/" in name for name in archive.namelist())
    source = read_source(path)
    assert source.layout == "torchscript"
    assert set(source.claims.values()) == {"quick_gelu"}
    assert {tensor.dtype for tensor in source.tensors.values()} == {torch.float16, torch.float32}
    assert_equal(source.tensors, ARCHIVED)


def test_archive_is_not_changed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_torchscript(STATE, tmp_path / "archive.pt")
    before = path.read_bytes()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    read_source(path)
    assert path.read_bytes() == before
    assert not list(temporary.iterdir())


def test_archive_whose_code_cannot_run(tmp_path: Path) -> None:
    whole = write_torchscript(STATE, tmp_path / "whole.pt")
    path = rewrite_zip(whole, tmp_path / "archive.pt", {".py": b"no code at all ("})
    with pytest.raises(RuntimeError):
        torch.jit.load(str(path))
    assert_equal(read_source(path).tensors, ARCHIVED)


class Trap(nn.Module):
    """Its code runs, and stops the program that runs it, as soon as TorchScript loads it."""

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return torch.zeros(2), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.training = state[1]
        raise RuntimeError("sprung")

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_archive_whose_code_acts_on_loading(tmp_path: Path) -> None:
    root = torchscript_module(STATE)
    root.add_module("trap", Trap())
    path = scripted(root, tmp_path / "archive.pt")
    with pytest.raises(torch.jit.Error, match="sprung"):
        torch.jit.load(str(path))
    assert_equal(read_source(path).tensors, ARCHIVED)


class Rich(Node):
    """Attributes of every kind that TorchScript writes."""

    counts: list[int]
    names: dict[str, int]
    pairs: list[tuple[int, float]]
    nothing: int | None

    def __init__(self) -> None:
        super().__init__()
        self.counts = [1, 2]
        self.nested = [[1], [2]]
        self.flags = [True]
        self.numbers = [1.5]
        self.words = ["a"]
        self.tensors = [torch.zeros(2)]
        self.names = {"a": 1}
        self.pairs = [(1, 2.0)]
        self.whole, self.real, self.text = 3, 0.5, "b"
        self.nothing = None
        self.place = torch.device("cpu")


def test_archive_with_attributes(tmp_path: Path) -> None:
    root = torchscript_module(STATE)
    root.add_module("rich", Rich())
    path = scripted(root, tmp_path / "archive.pt")
    assert_equal(read_source(path).tensors, ARCHIVED)


def test_full_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_torchscript(STATE, tmp_path / "archive.pt")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        read_source(path)


# ------------------------------------------------------------------------------ (b) pickles


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."]
)
def test_training_checkpoint(tmp_path: Path, prefix: str) -> None:
    source = read_source(write_training_checkpoint(STATE, tmp_path / "a.pt", prefix=prefix))
    assert source.layout == "pickle" and not source.claims
    assert_equal(source.tensors, STATE)


def test_prefix_without_anything_around_it(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "a.pt")
    assert_equal(read_source(tmp_path / "a.pt").tensors, STATE)


def test_numpy_1_names(tmp_path: Path) -> None:
    newer = write_training_checkpoint(STATE, tmp_path / "newer.pt")
    with zipfile.ZipFile(newer) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        content = archive.read(name)
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    assert (old in content) != (new in content)
    for spelling in (old, new):
        changed = content.replace(old, spelling).replace(new, spelling)
        path = rewrite_zip(newer, tmp_path / "a.pt", {"/data.pkl": changed})
        assert_equal(read_source(path).tensors, STATE)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "noending"])
def test_plain_pickle(tmp_path: Path, zipped: bool, nested: bool, name: str) -> None:
    content: Any = {"epoch": 3, "state_dict": STATE} if nested else STATE
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_equal(read_source(tmp_path / name).tensors, STATE)


def test_deeply_nested(tmp_path: Path) -> None:
    torch.save({"a": {"model": {"state_dict": STATE}}, "b": [1, 2]}, tmp_path / "a.pt")
    assert_equal(read_source(tmp_path / "a.pt").tensors, STATE)


def test_state_dict_is_taken_before_others(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"ema": average, "state_dict": STATE}, tmp_path / "a.pt")
    assert_equal(read_source(tmp_path / "a.pt").tensors, STATE)


def test_parameters_that_ask_for_gradients(tmp_path: Path) -> None:
    torch.save({name: nn.Parameter(tensor) for name, tensor in STATE.items()}, tmp_path / "a.pt")
    assert_equal(read_source(tmp_path / "a.pt").tensors, STATE)


def test_custom_text_clip(tmp_path: Path) -> None:
    """open_clip's CustomTextCLIP keeps the text tower under `text.`."""
    inside = {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor
        for name, tensor in STATE.items()
    }
    inside["text.attn_mask"] = torch.zeros(16, 16)
    torch.save({"state_dict": inside}, tmp_path / "a.pt")
    assert_equal(read_source(tmp_path / "a.pt").tensors, STATE)


def test_scale_as_a_vector(tmp_path: Path) -> None:
    torch.save({**STATE, "logit_scale": STATE["logit_scale"][None]}, tmp_path / "a.pt")
    assert_equal(read_source(tmp_path / "a.pt").tensors, STATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": STATE, "ema": dict(STATE)},
            r"several models, under the entries \['model', 'ema'\]",
        ),
        (
            {f"{at}.{name}": tensor for at in "ab" for name, tensor in STATE.items()},
            r"several models, under the prefixes \['a\.', 'b\.'\]",
        ),
        (
            {**STATE, "text.ln_final.bias": STATE["ln_final.bias"]},
            "has both ln_final.bias and text.ln_final.bias",
        ),
        ({**STATE, "head.weight": torch.zeros(3, 4)}, r"does not have: head\.weight \[3, 4\]"),
        ({**STATE, 7: torch.zeros(3)}, r"does not have: 7 \[3\]"),
        (
            {"a": 1, "state_dict": {"w": torch.zeros(1)}},
            "no CLIP state dict.*its entries: a, state_dict",
        ),
        ([1, 2], "no CLIP state dict"),
        (torch.zeros(3), "no CLIP state dict"),
    ],
)
def test_another_content(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"(?s)a\\.pt.*{message}"):
        read_source(tmp_path / "a.pt")


# ---------------------------------------------------------------------------- hostile files


def touch(path: Path) -> dict[str, tuple[Call, str]]:
    """Calls that would make a file, and a part of the name of what is called."""
    return {
        "system": (Call(os.system, f"touch '{path}'"), "system"),
        "eval": (Call(eval, f"open({str(path)!r}, 'w').close()"), "eval"),
        "exec": (Call(exec, f"open({str(path)!r}, 'w').close()"), "exec"),
        "open": (Call(open, str(path), "w"), "open"),
    }


def in_zip(call: Call, folder: Path) -> Path:
    torch.save({"state_dict": STATE, "extra": call}, folder / "a.pt")
    return folder / "a.pt"


def in_old_file(call: Call, folder: Path) -> Path:
    content = {"state_dict": STATE, "extra": call}
    torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def in_bare_pickle(call: Call, folder: Path) -> Path:
    (folder / "a.pt").write_bytes(pickled({"state_dict": call}))
    return folder / "a.pt"


def in_archive(call: Call, folder: Path) -> Path:
    whole = write_torchscript(STATE, folder / "whole.pt")
    return rewrite_zip(whole, folder / "a.pt", {"/data.pkl": pickled(call)})


def in_hugging_face_bin(call: Call, folder: Path) -> Path:
    write_hugging_face(STATE, folder / "hf", name="pytorch_model.bin")
    torch.save({**hugging_face_state(STATE), "x": call}, folder / "hf" / "pytorch_model.bin")
    return folder / "hf"


PLACES = [in_zip, in_old_file, in_bare_pickle, in_archive, in_hugging_face_bin]


@pytest.mark.parametrize("call", ["system", "eval", "exec", "open"])
@pytest.mark.parametrize("place", PLACES)
def test_hostile_pickle(tmp_path: Path, place: Callable[[Call, Path], Path], call: str) -> None:
    flag = tmp_path / "flag"
    act, name = touch(flag)[call]
    path = place(act, tmp_path)
    with pytest.raises(ValueError, match=f"construct or call .*{name}.*refused") as caught:
        read_source(path)
    assert not flag.exists()
    named = path / "pytorch_model.bin" if path.is_dir() else path
    assert str(caught.value).startswith(str(named))
    assert "numpy" not in str(caught.value)  # what is allowed is not named


def test_the_hostile_files_would_act(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    for act, _ in touch(flag).values():
        torch.load(in_zip(act, tmp_path), weights_only=False)
        assert flag.exists()
        flag.unlink()


def test_only_what_is_not_allowed_is_named(tmp_path: Path) -> None:
    path = write_training_checkpoint(STATE, tmp_path / "a.pt")  # Namespace, numpy: allowed
    content = torch.load(path, weights_only=False)
    torch.save({**content, "extra": nn.Linear(2, 2)}, path)
    with pytest.raises(ValueError, match="linear.Linear") as caught:
        read_source(path)
    for allowed in ("Namespace", "numpy", "OrderedDict", "_rebuild_tensor"):
        assert allowed not in str(caught.value)


def test_hostile_constants_are_not_read(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    whole = write_torchscript(STATE, tmp_path / "whole.pt")
    for act, _ in touch(flag).values():
        path = rewrite_zip(whole, tmp_path / "a.pt", {"/constants.pkl": pickled(act)})
        assert_equal(read_source(path).tensors, ARCHIVED)
        assert not flag.exists()


@pytest.mark.parametrize("module", ["__torch__.os", "torch.jit._pickle"])
def test_names_of_torchscript_stay_inert(tmp_path: Path, module: str) -> None:
    """Names that are let through because TorchScript uses them must lead to nothing of Python's."""
    flag = tmp_path / "flag"
    call = b"\x80\x02c" + module.encode() + b"\nsystem\nX"
    command = f"touch '{flag}'".encode()
    call += len(command).to_bytes(4, "little") + command + b"\x85R."
    whole = write_torchscript(STATE, tmp_path / "whole.pt")
    path = rewrite_zip(whole, tmp_path / "a.pt", {"/data.pkl": call})
    with pytest.raises(ValueError, match=r"a\.pt cannot be read"):
        read_source(path)
    assert not flag.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_hostile_pickle_of_another_protocol(tmp_path: Path, protocol: int) -> None:
    flag = tmp_path / "flag"
    for act, _ in touch(flag).values():
        (tmp_path / "a.pt").write_bytes(pickle.dumps({"state_dict": act}, protocol))
        with pytest.raises(ValueError, match=r"a\.pt"):
            read_source(tmp_path / "a.pt")
        torch.save({"x": act}, tmp_path / "b.pt", pickle_protocol=protocol)
        with pytest.raises(ValueError, match=r"b\.pt"):
            read_source(tmp_path / "b.pt")
        assert not flag.exists()


# ---------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors", "noending"])
@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1000\n",
        b'{"error": "Repository not found"}',
        b"\x80",
        b"\x80\x02",
        b"\x80\x02garbage",
        b"PK\x03\x04 and no more",
        b"\x00" * 1000,
        random.Random(0).randbytes(1000),
    ],
)
def test_no_checkpoint(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}") as caught:
        read_source(tmp_path / name)
    message = str(caught.value)
    assert "fetch it again" in message
    assert "weights_only" not in message and len(message) < 400


def test_page_in_place_of_a_file_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(ValueError, match=r"begins with b'<!DOCTYPE html>"):
        read_source(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is empty"):
        read_source(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*a\.pt"):
        read_source(tmp_path / "a.pt")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_training_checkpoint(STATE, tmp_path / "a.pt")
    path.chmod(0)
    with pytest.raises(PermissionError):
        read_source(path)


def write_old(path: Path) -> Path:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    return path


WRITERS = {
    "archive": lambda folder: write_torchscript(STATE, folder / "a.pt"),
    "pickle": lambda folder: write_training_checkpoint(STATE, folder / "a.pt"),
    "old pickle": lambda folder: write_old(folder / "a.pt"),
    "safetensors": lambda folder: write_open_clip(STATE, folder / "a.safetensors"),
}


@pytest.mark.parametrize("kept", [0.001, 0.02, 0.3, 0.7, 0.99, 0.9999])
@pytest.mark.parametrize("writer", list(WRITERS))
def test_cut_short(tmp_path: Path, writer: str, kept: float) -> None:
    path = WRITERS[writer](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(
        ValueError, match=f"{path.name} .*(cut short|is not a checkpoint)"
    ) as caught:
        read_source(path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"/data.pkl": None},
        {"/data.pkl": b""},
        {"/data.pkl": b"\x80\x02garbage"},
        {"/data.pkl": pickled(5)},
        {"/data.pkl": pickled({"visual.conv1.weight": 5})},
        {"/data/7": None},
        {"/data/7": b"ab"},
    ],
)
def test_damaged_archive(tmp_path: Path, changes: dict[str, bytes | None]) -> None:
    whole = write_torchscript(STATE, tmp_path / "whole.pt")
    path = rewrite_zip(whole, tmp_path / "a.pt", changes)
    with pytest.raises(ValueError, match=r"a\.pt cannot be read"):
        read_source(path)


def test_archive_that_contains_itself(tmp_path: Path) -> None:
    # A module of class __torch__.M whose attribute `a` is the module.
    loop = b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01}X\x01\x00\x00\x00ah\x01sb."
    whole = write_torchscript(STATE, tmp_path / "whole.pt")
    path = rewrite_zip(whole, tmp_path / "a.pt", {"/data.pkl": loop})
    with pytest.raises(ValueError, match="contains itself"):
        read_source(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["archive", "pickle"])
def test_flipped_bytes_of_a_pickle(tmp_path: Path, writer: str) -> None:
    """Whatever the damage: the file is read, or it is a ValueError that names it."""
    path = WRITERS[writer](tmp_path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        content = archive.read(name)
    draw = random.Random(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        other = rewrite_zip(path, tmp_path / "b.pt", {"/data.pkl": bytes(damaged)})
        try:
            dict(read_source(other).tensors)
        except ValueError as error:
            refused += 1
            assert str(other) in str(error)
    assert refused > 10


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["old pickle", "safetensors", "archive"])
def test_flipped_bytes_of_a_file(tmp_path: Path, writer: str) -> None:
    path = WRITERS[writer](tmp_path)
    content = path.read_bytes()
    draw = random.Random(1)
    # The descriptions: at the start, but of a zip at the end.
    start = len(content) - 8000 if writer == "archive" else 0
    refused = 0
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[start + draw.randrange(8000)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            dict(read_source(path).tensors)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 10
