"""Overlays: the numbers in the pixels, the files on the disk, and no display anywhere."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gem_lite.method.config import OPENAI_MEAN, OPENAI_STD
from gem_lite.pictures.overlays import (
    contact_sheet,
    heat_colours,
    label_colour,
    label_overlay,
    titled,
    visualize,
)
from gem_lite.pictures.saving import safe_name, save_picture
from gem_lite.pictures.transform import get_gem_img_transform

H, W = 40, 60
PROMPTS = ["cat", "remote control"]


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(2, H, W, generator=torch.Generator().manual_seed(0))


def below_title(overlay: Image.Image, h: int = H, w: int = W) -> np.ndarray:
    """The picture's part of an overlay, [h, w, 3] uint8."""
    assert overlay.mode == "RGB" and overlay.width == w and overlay.height > h
    return np.asarray(overlay)[-h:]


def bytes_of(overlays: list[Image.Image]) -> list[bytes]:
    return [overlay.tobytes() for overlay in overlays]


# ---- what is drawn


def test_blend(picture: Image.Image, maps: Tensor) -> None:
    overlays = visualize(picture, PROMPTS, maps, alpha=0.25)
    assert len(overlays) == 2
    for overlay, heat in zip(overlays, maps.numpy(), strict=True):
        stretched = (heat - heat.min()) / (heat.max() - heat.min())
        expected = 0.25 * 255 * heat_colours(stretched) + 0.75 * np.asarray(picture)
        assert np.abs(below_title(overlay) - expected).max() <= 0.51


def test_alpha_zero_is_the_picture_and_one_is_the_map(picture: Image.Image, maps: Tensor) -> None:
    assert np.array_equal(below_title(visualize(picture, PROMPTS, maps, 0)[0]), picture)
    maps[0] = torch.linspace(0, 1, H * W).reshape(H, W)
    shown = below_title(visualize(picture, PROMPTS, maps, alpha=1)[0])
    expected = (255 * heat_colours(maps[0].numpy())).round()
    assert np.abs(shown - expected).max() <= 1


def test_height_and_width_are_not_swapped(picture: Image.Image) -> None:
    """A hot corner stays in its corner, on a picture that is not square."""
    maps = torch.zeros(1, H, W)
    maps[0, :10, -10:] = 1
    shown = below_title(visualize(picture, ["corner"], maps, alpha=1)[0]).astype(int)
    hot, cold = shown[5, -5], shown[-5, 5]
    assert np.array_equal(hot, (255 * heat_colours(np.ones((1, 1)))[0, 0]).round())
    assert np.array_equal(cold, (255 * heat_colours(np.zeros((1, 1)))[0, 0]).round())
    assert np.array_equal(shown[5, 5], cold) and np.array_equal(shown[-5, -5], cold)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "CMYK"])
def test_pictures_of_any_mode(mode: str, picture: Image.Image, maps: Tensor) -> None:
    other = picture.convert(mode)
    assert np.array_equal(
        below_title(visualize(other, PROMPTS, maps, 0)[0]), np.asarray(other.convert("RGB"))
    )


def test_tensors_are_denormalised(picture: Image.Image, maps: Tensor) -> None:
    tensor = get_gem_img_transform((H, W))(picture)
    expected = bytes_of(visualize(picture, PROMPTS, maps))
    assert bytes_of(visualize(tensor, PROMPTS, maps)) == expected
    assert bytes_of(visualize(tensor[None], PROMPTS, maps[None])) == expected
    trained = tensor.clone().requires_grad_()
    assert bytes_of(visualize(trained, PROMPTS, maps.clone().requires_grad_())) == expected
    half = get_gem_img_transform((H, W), (0.5,) * 3, (0.25,) * 3)(picture)
    assert (
        bytes_of(visualize(half, PROMPTS, maps, mean=[0.5] * 3, std=iter([0.25] * 3))) == expected
    )
    assert OPENAI_MEAN != OPENAI_STD


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype, picture: Image.Image, maps: Tensor) -> None:
    tensor = get_gem_img_transform((H, W))(picture).to(dtype)
    found = visualize(tensor, PROMPTS, maps.to(dtype))
    for one, other in zip(found, visualize(picture, PROMPTS, maps), strict=True):
        difference = np.abs(below_title(one).astype(int) - below_title(other))
        assert difference.max() <= 6


def test_any_range_is_stretched(picture: Image.Image, maps: Tensor) -> None:
    expected = visualize(picture, PROMPTS, maps)
    for one, other in zip(visualize(picture, PROMPTS, 0.25 + maps / 64), expected, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_constant_maps_are_cold(value: float, picture: Image.Image) -> None:
    maps = torch.full((1, H, W), value)
    maps[0, 0, 0] += 1e-8  # lost in rounding, or next to nothing
    cold = below_title(visualize(picture, ["x"], torch.zeros(1, H, W), alpha=1)[0])
    if value:
        assert np.array_equal(below_title(visualize(picture, ["x"], maps, alpha=1)[0]), cold)
    assert (cold == cold[0, 0]).all()


@pytest.mark.parametrize("size", [(5, 9), (80, 120), (33, 20)])
def test_maps_of_another_size_are_resized_to_the_picture(
    size: tuple[int, int], picture: Image.Image
) -> None:
    """A ramp from left to right stays one."""
    ramp = torch.linspace(0, 1, size[1]).expand(1, *size)
    shown = below_title(visualize(picture, ["ramp"], ramp, alpha=1)[0]).astype(float)
    assert np.abs(shown - shown[:1]).max() <= 1
    luma = shown[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) >= -1).all() and luma[-1] - luma[0] > 150


def test_inputs_are_left_alone(picture: Image.Image, maps: Tensor) -> None:
    tensor = get_gem_img_transform((H, W))(picture)
    before = tensor.clone(), maps.clone(), picture.tobytes()
    visualize(tensor, PROMPTS, maps)
    visualize(picture, PROMPTS, maps)
    assert torch.equal(tensor, before[0]) and torch.equal(maps, before[1])
    assert picture.tobytes() == before[2]


def test_colours_grow_brighter_all_the_way() -> None:
    ramp = heat_colours(np.linspace(0, 1, 501, dtype=np.float32)[None])
    assert ramp.shape == (1, 501, 3) and ramp.dtype == np.float32
    assert ramp.min() >= 0 and ramp.max() <= 1
    luma = ramp[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > 0).all()
    assert luma[0] < 0.2 and luma[-1] > 0.85


# ---- titles


def ink(band: np.ndarray) -> int:
    return int((band < 128).all(axis=-1).sum())


def test_titles_are_written_above(picture: Image.Image) -> None:
    wide = picture.resize((300, 200))
    one = titled(wide, "cat")
    band = np.asarray(one)[: one.height - 200]
    assert np.array_equal(np.asarray(one)[-200:], wide)
    assert ink(band) > 20 and band[0].min() == 255 and band[-1].min() == 255
    assert ink(np.asarray(titled(wide, ""))[: len(band)]) == 0
    assert one.tobytes() != titled(wide, "dog").tobytes()


@pytest.mark.parametrize("title", ["a remote control on a very long sofa " * 9, "x" * 300])
def test_long_titles_fit_and_pictures_stay_level(title: str, picture: Image.Image) -> None:
    wide = picture.resize((300, 200))
    long, short = titled(wide, title), titled(wide, "cat")
    assert long.size == short.size
    band = np.asarray(long)[: long.height - 200]
    assert ink(band) > 200
    assert band[:, :3].min() == 255 and band[:, -3:].min() == 255


@pytest.mark.parametrize("title", ["", " \n\t ", "a\nb", "犬 🐱", "\x00", "ﷺ", "%s {} <b>&amp;"])
def test_any_title_is_drawn(title: str, picture: Image.Image) -> None:
    assert titled(picture, title).width == W


def test_accents_are_left_out_for_the_built_in_font(picture: Image.Image) -> None:
    assert titled(picture, "été").tobytes() == titled(picture, "ete").tobytes()


# ---- files


def test_a_file_gets_one_sheet(tmp_path: Path, picture: Image.Image, maps: Tensor) -> None:
    path = tmp_path / "sheet.png"
    overlays = visualize(picture, PROMPTS, maps, save_path=path)
    assert os.listdir(tmp_path) == ["sheet.png"]
    with Image.open(path) as sheet:
        assert sheet.tobytes() == contact_sheet(overlays, columns=2).tobytes()


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".webp", ".tif", ".bmp", ".gif", ".pdf"])
def test_other_formats(ending: str, tmp_path: Path, picture: Image.Image, maps: Tensor) -> None:
    path = tmp_path / f"sheet{ending}"
    visualize(picture, PROMPTS, maps, save_path=str(path))
    assert os.listdir(tmp_path) == [path.name] and path.stat().st_size > 100


@pytest.mark.parametrize("name", ["out", "a/b/c", "v1.0"])
def test_a_folder_gets_one_file_per_prompt(
    name: str, tmp_path: Path, picture: Image.Image, maps: Tensor
) -> None:
    overlays = visualize(picture, PROMPTS, maps, save_path=tmp_path / name)
    written = sorted((tmp_path / name).iterdir())
    assert [path.name for path in written] == ["00-cat.png", "01-remote_control.png"]
    for path, overlay in zip(written, overlays, strict=True):
        with Image.open(path) as stored:
            assert stored.tobytes() == overlay.tobytes()


def test_a_folder_that_is_called_like_a_picture(
    tmp_path: Path, picture: Image.Image, maps: Tensor
) -> None:
    (tmp_path / "x.png").mkdir()
    visualize(picture, PROMPTS, maps, save_path=tmp_path / "x.png")
    assert len(list((tmp_path / "x.png").iterdir())) == 2


HOSTILE = [
    "../../x",
    "a/b",
    "..",
    ".",
    "",
    "CON",
    "nul.txt",
    "C:\\x",
    "🐱",
    "犬犬",
    "é" * 300,
    "x" * 300,
    "a\nb\x00",
    "a  b",
    "-rf",
    "~",
    "$HOME",
    "*?<>|\":'",
    "cat",
    "cat",
]


def test_hostile_prompts_stay_in_the_folder(tmp_path: Path, picture: Image.Image) -> None:
    folder = tmp_path / "inner" / "out"
    maps = torch.rand(len(HOSTILE), 8, 8)
    visualize(picture, HOSTILE, maps, save_path=folder)
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = sorted(path.name for path in everything)
    assert all(path.parent == folder for path in everything)
    assert len(names) == len(HOSTILE)
    for index, name in enumerate(names):
        assert re.fullmatch(rf"{index:02d}(-[\w-]+)?\.png", name), name
        assert len(name.encode()) <= 100 and name == safe_name(index, HOSTILE[index])
    assert (
        names[4] == "04.png" and names[8] == "08.png" and names[18:] == ["18-cat.png", "19-cat.png"]
    )


def test_an_existing_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    real = Path.write_bytes

    def broken(self: Path, data: bytes) -> int:
        real(self, data[: len(data) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", broken)
        with pytest.raises(OSError, match="disk full"):
            save_picture(picture, path)
    assert os.listdir(tmp_path) == ["sheet.png"] and path.read_bytes() == b"old"
    save_picture(picture, path)
    with Image.open(path) as stored:
        assert stored.size == (W, H)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_have_the_usual_permissions(tmp_path: Path, picture: Image.Image) -> None:
    before = os.umask(0o027)
    try:
        save_picture(picture, tmp_path / "a.png")
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_a_name_as_long_as_names_may_be(tmp_path: Path, picture: Image.Image) -> None:
    save_picture(picture, tmp_path / ("x" * 250 + ".png"))


@pytest.mark.parametrize("name", ["x.psd", "x.txt", "x", ".png"])
def test_formats_that_cannot_be_written(name: str, tmp_path: Path, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"does not end as a picture that Pillow writes.*\.png"):
        save_picture(picture, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_paths_that_cannot_be_written(tmp_path: Path, picture: Image.Image, maps: Tensor) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing to write sheet\.png to"):
        visualize(picture, PROMPTS, maps, save_path=tmp_path / "missing" / "sheet.png")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file without a picture's ending"):
        visualize(picture, PROMPTS, maps, save_path=tmp_path / "file")
    with pytest.raises(OSError):
        visualize(picture, PROMPTS, maps, save_path=tmp_path / "file" / "inside")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path, picture: Image.Image, maps: Tensor) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        visualize(picture, PROMPTS, maps, save_path=tmp_path / "sheet.png")
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


# ---- displays


def test_nothing_is_shown_or_imported_without_a_notebook(tmp_path: Path) -> None:
    code = """
import os, sys
os.environ.pop("DISPLAY", None)
import torch
from PIL import Image
from gem_lite.pictures.overlays import visualize
visualize(Image.new("RGB", (30, 20)), ["a"], torch.rand(1, 20, 30), save_path="x.png")
heavy = {"matplotlib", "cv2", "IPython", "tkinter", "torchvision"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert os.listdir(tmp_path) == ["x.png"]


@pytest.mark.parametrize("kernel", [True, False, None])
def test_in_a_notebook_the_sheet_is_shown(
    kernel: bool | None, picture: Image.Image, maps: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel's shell shows pictures; a terminal's shell, and none, do not."""
    shown: list[Image.Image] = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell = types.SimpleNamespace(kernel=object()) if kernel else types.SimpleNamespace()
    ipython.get_ipython = lambda: None if kernel is None else shell  # type: ignore[attr-defined]
    display.display = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    overlays = visualize(picture, PROMPTS, maps)
    assert len(overlays) == 2
    expected = [contact_sheet(overlays, columns=2).tobytes()] if kernel else []
    assert bytes_of(shown) == expected


# ---- sheets


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (4, 4, 1), (5, 4, 2), (7, 3, 3)])
def test_sheets(count: int, columns: int, rows: int) -> None:
    pictures = [Image.new("RGB", (20, 10 + i), (i, 0, 0)) for i in range(count)]
    sheet = contact_sheet(pictures, columns=columns)
    # Each row is as high as the last in it.
    tops = [8]
    for row in range(rows):
        tops.append(tops[-1] + 10 + min((row + 1) * columns, count) - 1 + 8)
    assert sheet.size == (columns * 28 + 8, tops[-1])
    for i in range(count):
        row, column = divmod(i, columns)
        corner = (8 + column * 28, tops[row])
        assert sheet.getpixel(corner) == (i, 0, 0)
        assert sheet.getpixel((corner[0] - 1, corner[1])) == (255, 255, 255)


def test_more_prompts_than_columns(tmp_path: Path, picture: Image.Image) -> None:
    overlays = visualize(picture, list("abcdef"), torch.rand(6, 8, 8), save_path=tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (4 * (W + 8) + 8, 2 * (overlays[0].height + 8) + 8)


# ---- segmentations


def test_label_overlay(picture: Image.Image) -> None:
    labels = torch.zeros(H, W, dtype=torch.int64)
    labels[:10, :20], labels[20:, 30:] = 1, 3
    shown = label_overlay(picture, labels, ["cat", "dog", "sofa"], alpha=0.5)
    pixels = np.asarray(picture).astype(float)
    found = np.asarray(shown)[:H, :W].astype(float)
    mask = labels.numpy()
    assert np.array_equal(found[mask == 0], pixels[mask == 0])
    for index in (0, 2):
        expected = 0.5 * np.array(label_colour(index)) + 0.5 * pixels[mask == index + 1]
        assert np.abs(found[mask == index + 1] - expected).max() <= 0.51
    assert shown.height > H


def test_labels_of_another_size_are_not_blended(picture: Image.Image) -> None:
    labels = torch.tensor([[1, 3], [3, 1]])
    shown = np.asarray(label_overlay(picture, labels, ["a", "b", "c"], alpha=1))[:H, :W]
    assert {tuple(colour) for colour in shown.reshape(-1, 3)} == {label_colour(0), label_colour(2)}
    wide = torch.tensor([[1, 2, 3]])
    shown = np.asarray(label_overlay(picture, wide, ["a", "b", "c"], alpha=1))[:H, :W]
    assert [tuple(shown[0, x]) for x in (5, 30, 55)] == [label_colour(i) for i in range(3)]


def test_the_legend_shows_every_class(picture: Image.Image) -> None:
    names = [f"class number {number}" for number in range(20)]
    shown = label_overlay(picture, torch.zeros(H, W).long(), names)
    legend = np.asarray(shown)[H:].reshape(-1, 3)
    colours = {tuple(colour) for colour in legend}
    assert {label_colour(index) for index in range(20)} <= colours
    wide = label_overlay(picture.resize((900, 300)), torch.zeros(300, 900).long(), names)
    assert wide.width == 900
    assert wide.height - 300 < shown.height - H  # columns


def test_a_legend_wider_than_its_picture_is_not_cut(picture: Image.Image) -> None:
    shown = label_overlay(picture, torch.zeros(H, W).long(), ["a name much wider than the picture"])
    legend = np.asarray(shown)[H:]
    assert shown.width > W and legend[:, -4:].min() == 255
    assert ink(legend) > 100


def test_label_colours_are_apart() -> None:
    colours = [label_colour(index) for index in range(12)]
    for i, one in enumerate(colours):
        for other in colours[:i]:
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 40
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


# ---- bad input

MAPS = torch.rand(2, H, W)
IMAGE = torch.zeros(3, H, W)
BAD: dict[str, tuple[tuple, dict, type[Exception], str]] = {
    "a string": ((IMAGE, "cat", MAPS), {}, TypeError, r"a string; expected a list: \['cat'\]"),
    "a number": ((IMAGE, ["cat", 3], MAPS), {}, TypeError, "a prompt is 3; expected a string"),
    "no prompts": ((IMAGE, [], MAPS[:0]), {}, ValueError, "0 maps for 0 prompts; expected one map"),
    "fewer prompts": ((IMAGE, ["cat"], MAPS), {}, ValueError, "2 maps for 1 prompts"),
    "alpha": ((IMAGE, PROMPTS, MAPS), {"alpha": 1.5}, ValueError, r"alpha is 1\.5; .*\[0, 1\]"),
    "alpha in percent": ((IMAGE, PROMPTS, MAPS, 60), {}, ValueError, "alpha is 60"),
    "a path": (
        ("cat.png", PROMPTS, MAPS),
        {},
        TypeError,
        "type str; expected a PIL image or a tensor",
    ),
    "two images": (
        (IMAGE.expand(2, 3, H, W), PROMPTS, MAPS),
        {},
        ValueError,
        r"\[2, 3, 40, 60\]; expected \[3, h, w\] or \[1, 3, h, w\]",
    ),
    "channels last": (
        (IMAGE.movedim(0, 2), PROMPTS, MAPS),
        {},
        ValueError,
        r"\[40, 60, 3\]; expected",
    ),
    "an array": ((IMAGE, PROMPTS, MAPS.numpy()), {}, TypeError, "type ndarray; expected a tensor"),
    "two batches": (
        (IMAGE, PROMPTS, MAPS.expand(2, 2, H, W)),
        {},
        ValueError,
        r"logits has shape \[2, 2, 40, 60\]; expected \[p, h, w\] or \[1, p, h, w\]",
    ),
    "one map": ((IMAGE, ["cat"], MAPS[0]), {}, ValueError, r"shape \[40, 60\]"),
    "nan": ((IMAGE, ["cat"], MAPS[:1] * float("nan")), {}, ValueError, "not finite"),
}


@pytest.mark.parametrize(("given", "named", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input(
    given: tuple, named: dict, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        visualize(*given, save_path=tmp_path / "out", **named)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("labels", "names", "kind", "message"),
    [
        (torch.zeros(1, H, W), ["a"], ValueError, r"shape \[1, 40, 60\]; expected \[h, w\]"),
        (torch.zeros(0, W), ["a"], ValueError, r"shape \[0, 60\]"),
        (torch.full((H, W), 3), ["a", "b"], ValueError, "run from 3 to 3; .* to 2, the number"),
        (torch.full((H, W), -1), ["a"], ValueError, "run from -1 to -1; expected 0"),
        (np.zeros((H, W)), ["a"], TypeError, "type ndarray; expected a tensor"),
        (torch.zeros(H, W), "a", TypeError, r"names is a string; expected a list"),
    ],
)
def test_bad_labels(
    labels: Tensor, names: list[str], kind: type[Exception], message: str, picture: Image.Image
) -> None:
    with pytest.raises(kind, match=message):
        label_overlay(picture, labels, names)


def test_bad_alpha_of_labels(picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="alpha is -1"):
        label_overlay(picture, torch.zeros(H, W).long(), ["a"], alpha=-1)
