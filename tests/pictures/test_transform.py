"""The image transform against recorded and live torchvision, and against its formula."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gem_lite.method.config import OPENAI_MEAN, OPENAI_STD
from gem_lite.pictures.transform import ImageTransform, get_gem_img_transform

GOLDEN = Path(__file__).parents[1] / "golden"
HALF = (0.5, 0.5, 0.5)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.RandomState(seed)
    image = Image.fromarray(rng.randint(0, 256, (height, width, 4)).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    image = image.convert("RGB")
    if not mode.startswith("P"):
        return image.convert(mode)
    image = image.quantize(31)
    if mode == "P, one clear colour":
        image.info["transparency"] = 3
    if mode == "P, alpha for each colour":
        image.info["transparency"] = rng.randint(0, 256, 31).astype(np.uint8).tobytes()
    return image


# ---- against torchvision


@pytest.mark.parametrize("case", range(7))
def test_recorded_torchvision(case: int) -> None:
    """golden/transform.npz: Resize(bicubic), ToTensor(), Normalize() of torchvision 0.28."""
    with np.load(GOLDEN / "transform.npz") as golden:
        pixels, size, mean, std, expected = (
            golden[f"{case}/{name}"] for name in ("pixels", "size", "mean", "std", "result")
        )
    size = int(size) if size.ndim == 0 else tuple(size.tolist())
    result = ImageTransform(size, mean, std)(Image.fromarray(pixels))
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.from_numpy(expected))


@pytest.fixture(scope="module")
def torchvision_transforms() -> ModuleType:
    try:
        import torchvision.transforms as transforms
    except (ImportError, RuntimeError, OSError) as error:  # absent, or built for another torch
        pytest.skip(f"no usable torchvision: {error}")
    return transforms


MODES = [
    *("RGB", "RGBA", "L", "LA", "CMYK", "1", "YCbCr"),
    *("P", "P, one clear colour", "P, alpha for each colour"),
]


@pytest.mark.parametrize("mode", MODES)
def test_live_torchvision(torchvision_transforms: ModuleType, mode: str) -> None:
    their = torchvision_transforms
    bicubic = their.InterpolationMode.BICUBIC
    sides = [(31, 47), (47, 31), (1, 9), (16, 16), (100, 3)]
    for seed, (height, width) in enumerate(sides):
        for size in (1, 16, 33, (16, 16), (7, 20), (64, 5)):
            for mean, std in ((OPENAI_MEAN, OPENAI_STD), (HALF, HALF)):
                image = picture(height, width, mode, seed)
                theirs = their.Compose(
                    [
                        their.Resize(size, interpolation=bicubic),
                        their.ToTensor(),
                        their.Normalize(mean, std),
                    ]
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's, about alpha in palettes
                    expected = theirs(image.convert("RGB"))
                assert torch.equal(ImageTransform(size, mean, std)(image), expected)


# ---- against the formula


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(21, 34), (40, 9)])
def test_formula(mode: str, size: tuple[int, int]) -> None:
    image = picture(29, 23, mode)
    rgb = image.convert("RGBA").convert("RGB")
    resized = np.asarray(rgb.resize(size[::-1], Image.Resampling.BICUBIC))
    mean, std = np.array(OPENAI_MEAN, np.float32), np.array(OPENAI_STD, np.float32)
    expected = (resized.astype(np.float32) / np.float32(255) - mean) / std
    result = get_gem_img_transform(size)(image)
    assert result.shape == (3, *size)
    np.testing.assert_array_equal(result.numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("image_size", "short", "expected"),  # (height, width)
    [
        ((100, 200), 50, (50, 100)),
        ((200, 100), 50, (100, 50)),
        ((64, 64), 50, (50, 50)),
        ((3, 7), 5, (5, 11)),  # 11.67 is cut, not rounded
        ((7, 3), 5, (11, 5)),
        ((480, 640), 480, (480, 640)),
        ((29, 10), 31, (89, 31)),
    ],
)
def test_an_integer_is_the_short_side(
    image_size: tuple[int, int], short: int, expected: tuple[int, int]
) -> None:
    assert get_gem_img_transform(short)(picture(*image_size)).shape == (3, *expected)


def test_defaults() -> None:
    transform = get_gem_img_transform()
    assert transform.size == (448, 448)
    assert (transform.mean, transform.std) == (OPENAI_MEAN, OPENAI_STD)
    result = transform(Image.new("RGB", (5, 9), (255, 0, 128)))
    assert result.shape == (3, 448, 448)
    colour = torch.tensor([255.0, 0.0, 128.0]) / 255
    expected = (colour - torch.tensor(OPENAI_MEAN)) / torch.tensor(OPENAI_STD)
    assert torch.equal(result[:, 7, 440], expected)


def test_height_comes_before_width() -> None:
    image = Image.new("RGB", (8, 4))  # Pillow: 8 wide, 4 high
    image.paste((255, 255, 255), (0, 0, 8, 2))
    result = ImageTransform((4, 8), ZERO, ONE)(image)
    assert torch.equal(result[0, :, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]))


def test_alpha_is_dropped_not_blended() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 51, 0))
    result = ImageTransform((4, 4), ZERO, ONE)(image)
    assert result[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


# ---- 16 bits

VALUES = np.array([[0, 1, 128, 129, 257], [300, 32768, 65279, 65407, 65535]])
EIGHT_BIT = [[0, 0, 0, 1, 1], [1, 128, 254, 255, 255]]  # value / 257, rounded


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bits_are_scaled(mode: str) -> None:
    layout = {"I": "=i4", "I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (5, 2), VALUES.astype(layout).tobytes())
    result = ImageTransform((2, 5), ZERO, ONE)(image) * 255
    assert result.round().int().tolist() == [EIGHT_BIT] * 3


def test_a_file_of_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(VALUES.astype(np.uint16)).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as image:
        result = ImageTransform((2, 5), ZERO, ONE)(image) * 255
    assert result.round().int().tolist() == [EIGHT_BIT] * 3


@pytest.mark.parametrize("value", [-1, 65536])
def test_mode_i_beyond_sixteen_bits(value: int) -> None:
    with pytest.raises(ValueError, match=f"0..65535, but it holds {value}..{value}"):
        ImageTransform(4)(Image.new("I", (3, 3), value))


# ---- what comes out


def test_the_result_is_its_own() -> None:
    image = picture(8, 8)
    before = image.tobytes()
    transform = ImageTransform((8, 8))
    first = transform(image)
    assert first.is_contiguous()
    expected = first.clone()
    first.zero_()
    assert image.tobytes() == before
    assert torch.equal(transform(image), expected)


def test_the_default_dtype_of_the_program_does_not_matter() -> None:
    expected = ImageTransform(6)(picture(8, 8))
    torch.set_default_dtype(torch.float64)
    try:
        result = ImageTransform(6)(picture(8, 8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_exif_orientation_is_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    picture(10, 20).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert image.getexif()[0x0112] == 6
        result = ImageTransform((10, 20))(image)
    assert torch.equal(result, ImageTransform((10, 20))(picture(10, 20)))


def test_pickle_and_repr() -> None:
    transform = get_gem_img_transform([32, 48], mean=HALF, std=np.array(HALF))  # type: ignore[arg-type]
    text = f"ImageTransform(size=(32, 48), mean={HALF}, std={HALF})"
    assert repr(transform) == text
    copied = pickle.loads(pickle.dumps(transform))
    assert repr(copied) == text
    assert torch.equal(copied(picture(9, 9)), transform(picture(9, 9)))


class Pictures(torch.utils.data.Dataset):
    def __init__(self, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(picture(12, 17, seed=index))


def test_in_a_worker_of_a_data_loader() -> None:
    data = Pictures(get_gem_img_transform((8, 8)))
    workers = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    (batch,) = workers
    assert torch.equal(batch, torch.stack([data[index] for index in range(4)]))


# ---- wrong input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.png", "got str; open the file"),
        (Path("cat.png"), "Path; open the file"),
        (np.zeros((4, 4, 3), np.uint8), "got ndarray; make one with PIL.Image.fromarray"),
        (torch.zeros(3, 4, 4), "got Tensor; the model takes"),
        (None, "got NoneType"),
    ],
)
def test_not_an_image(image: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ImageTransform(8)(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -3, (0, 4), (4, -1), (4,), (), (4, 4, 4), [5]])
def test_sizes_out_of_range(size: object) -> None:
    with pytest.raises(ValueError, match=r"size is .* expected"):
        ImageTransform(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [8.0, (8.0, 8), "8", None, True, (8, False), {8, 9}])
def test_sizes_of_a_wrong_type(size: object) -> None:
    with pytest.raises(TypeError, match=r"size is .* expected an integer or a pair"):
        ImageTransform(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mean", "std"])
def test_wrong_numbers(name: str) -> None:
    for values in ((0.5, 0.5), (0.5,) * 4, (0.5, 0.5, float("nan")), ()):
        with pytest.raises(ValueError, match=f"{name} is .* three finite numbers"):
            ImageTransform(8, **{name: values})
    for value in (0.5, "abc", (0.5, None, 0.5)):
        with pytest.raises(TypeError, match=f"{name} is .* expected three numbers"):
            ImageTransform(8, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, -0.5, 1e-60])
def test_std_must_be_above_zero(value: float) -> None:
    with pytest.raises(ValueError, match=r"std is .* above 0"):
        ImageTransform(8, HALF, (0.5, value, 0.5))


def test_images_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match=r"mode F .* no fixed range"):
        ImageTransform(8)(Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match="cannot make RGB of mode La"):
        ImageTransform(8)(Image.new("La", (4, 4)))
    with pytest.raises(ValueError, match="no pixels"):
        ImageTransform(8)(Image.new("RGB", (0, 4)))
