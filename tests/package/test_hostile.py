"""Files and words made to do harm: refused in one line, in little memory and time, nothing run.

What pickles and archives must not run is in test_archive.py; here is what they may claim.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import state_of, write_hugging_face, write_open_clip
from PIL import Image
from safetensors.torch import save_file
from small import CONFIG, random_images, small_header, small_model

import gem_lite as gem
from gem_lite.checkpoints.header import METADATA_KEY
from gem_lite.checkpoints.others import read_source
from gem_lite.pictures.opening import MAX_PIXELS, PictureError, open_picture
from gem_lite.tokenizer import Tokenizer
from gem_lite.tools.cli import main

ROOT = Path(__file__).parents[2]
ANCHOR = "visual.conv1.weight"


# ---- checkpoints: what they claim


LIMITED = """
import json, resource, sys, time
import gem_lite.factory, gem_lite.pictures.opening
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (50 << 20),) * 2)
for path in sys.argv[1:]:
    start, error = time.process_time(), None
    try:
        if path.endswith(".png"):
            gem_lite.pictures.opening.open_picture(path)
        else:
            gem_lite.factory.create_gem_model("ViT-B/32", path, activation="gelu")
    except ValueError as raised:
        error = f"{type(raised).__name__}: {raised}"
    print(json.dumps([time.process_time() - start, error]), flush=True)
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, str]]:
    """The processor's seconds and the error of each hostile file.

    Read in one process, which may take 50 MB beside what importing takes.
    """
    if sys.platform != "linux":
        pytest.skip("limits of memory as Linux has them")
    folder = tmp_path_factory.mktemp("hostile")
    paths = [*claims(folder), *attacks(folder), *bombs(folder)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(paths), (paths[len(lines)], done.stderr)
    for (_, error), path in zip(lines, paths, strict=True):
        assert error is not None and str(path) in error, (path, error)
    return {path.name: line for path, line in zip(paths, lines, strict=True)}


def zip_with(path: Path, entries: dict[str, bytes | int], compression: int) -> Path:
    """A zip; a number stands for so many zeros."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            if isinstance(content, bytes):
                archive.writestr(name, content)
                continue
            with archive.open(name, "w") as sink:
                for _ in range(content >> 20):
                    sink.write(bytes(1 << 20))
    return path


def stretched(path: Path) -> Path:
    """A state dict whose tensors are one number each, read again and again."""
    state = {ANCHOR: torch.zeros(1).expand(1 << 16, 3, 16, 16)}
    state |= {"visual.proj": torch.zeros(1).expand(1 << 16, 1 << 14)}
    torch.save(state, path)
    return path


def claimed_storage(path: Path) -> Path:
    """A file of the old form in which a storage says that it holds a terabyte."""
    torch.save({ANCHOR: torch.zeros(7, 3, 2, 2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    # The pickled number of elements, 84, as one byte.
    assert content.count(b"K\x54") >= 1
    path.write_bytes(content.replace(b"K\x54", b"\x8a\x05" + (1 << 38).to_bytes(5, "little")))
    return path


def claims(folder: Path) -> list[Path]:
    large = 160 << 20
    bomb = {"a/data.pkl": pickle.dumps({}, 2), "a/version": b"3\n", "a/data/0": large}
    script = {**bomb, "a/constants.pkl": pickle.dumps((), 2)}
    paths = [
        zip_with(folder / "zip.pt", bomb, zipfile.ZIP_DEFLATED),
        zip_with(folder / "script.pt", script, zipfile.ZIP_DEFLATED),
        stretched(folder / "stretched.pt"),
        claimed_storage(folder / "claimed.pt"),
    ]
    assert all(path.stat().st_size < 2 << 20 for path in paths)
    return paths


def test_claims_are_refused_in_little_memory(refused: dict[str, tuple[float, str]]) -> None:
    for name in ("zip.pt", "script.pt"):
        assert "would unpack to" in refused[name][1]
    for name in ("stretched.pt", "claimed.pt"):
        assert "its tensors claim" in refused[name][1]


def zipped(path: Path, pickled: bytes, *, script: bool = False) -> Path:
    """A file of torch.save's form (or torch.jit.save's) with this pickle."""
    entries: dict[str, bytes | int] = {"a/data.pkl": pickled, "a/version": b"3\n"}
    if script:
        entries |= {"a/constants.pkl": pickle.dumps((), 2), "a/code/x.py": b""}
    return zip_with(path, entries, zipfile.ZIP_STORED)


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def holds_itself() -> bytes:
    """A dict that stands in itself under 300 keys: four levels of it are 8,100,000,000 entries."""
    keys = b"".join(text(f"key {index}") + b"h\0" for index in range(300))
    return b"\x80\x02}q\0(" + keys + b"u."


def wide_scalar() -> bytes:
    dtype = called("numpy", "dtype", text("V2000000000"))
    return b"\x80\x02" + called("numpy.core.multiarray", "scalar", dtype) + b"."


def tuples_as_key() -> bytes:
    """A tuple of the same two tuples, and so on: its hash visits 2 ** 60 of them."""
    doubled = b"".join(b"q\0h\0h\0\x86" for _ in range(60))
    return b"\x80\x02}" + b")" + doubled + b"Ns."


def same_hash() -> bytes:
    """A hundred thousand numbers that all have the same hash."""
    numbers = b"".join(
        b"\x8a\x0c" + (index * ((1 << 61) - 1)).to_bytes(12, "little") + b"N"
        for index in range(100_000)
    )
    return b"\x80\x02}(" + numbers + b"u."


def many_classes() -> bytes:
    """Each call is looked up in a list of all names."""
    made = b"".join(f"c__torch__\nM{index}\n)\x81".encode("latin1") for index in range(20_000))
    return b"\x80\x02(" + made + b"t."


def modules_of_modules() -> bytes:
    """Sixty modules, each with the one before as two of its attributes."""
    new = b"c__torch__\nM\n)\x81"
    levels = b"".join(
        b"q\0" + new + b"}(" + text("a") + b"h\0" + text("b") + b"h\0ub" for _ in range(60)
    )
    return b"\x80\x02" + new + levels + b"."


ATTACKS: dict[str, tuple[bytes, str]] = {
    "a dict in itself": (holds_itself(), "holds no CLIP state dict"),
    "wide scalar": (wide_scalar(), "holds no CLIP state dict"),
    "two gigabytes of zeros": (
        b"\x80\x02" + called("__builtin__", "bytearray", b"\x8a\x05\0\0\0\x80\0") + b".",
        "construct or call __builtin__.bytearray",
    ),
    "punycode": (
        b"\x80\x02" + called("_codecs", "encode", text("\u4e00" * 13_000), text("punycode")) + b".",
        "a call of _codecs.encode",
    ),
    "punycode by a list": (
        b"\x80\x02" + called("_codecs", "encode", b"]", text("punycode")) + b".",
        "a call of _codecs.encode",
    ),
    "tuples of tuples": (tuples_as_key(), "a key that is neither"),
    "the same hash": (same_hash(), "a key that is neither"),
    "many instructions": (b"\x80\x02" + b"]0" * 400_000 + b"].", "instruction"),
    "many lists": (b"\x80\x02(" + b"]" * 600_000 + b"t.", "more than 500000 instructions"),
    "many classes": (many_classes(), "calls of"),
    "modules of modules": (modules_of_modules(), "there twice"),
    "a long name": (b"\x80\x02c" + b"a" * 1_000_000 + b"\nb\n.", "construct or call aaaa"),
    "a long key": (b"\x80\x02}" + text("k" * 1_000_000) + b"Ns.", "its entries: kkk"),
    "a long argument": (b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little"), "cannot be read"),
    "a set": (b"\x80\x02" + called("__builtin__", "set", b"]") + b".", "__builtin__.set"),
    "a sparse tensor": (
        b"\x80\x02" + called("torch._utils", "_rebuild_sparse_tensor", b"N") + b".",
        "_rebuild_sparse_tensor",
    ),
}


def attacks(folder: Path) -> list[Path]:
    """Each one in each form of a file."""
    paths = []
    for index, (pickled, _) in enumerate(ATTACKS.values()):
        paths += [folder / f"{index}-{kind}.pt" for kind in ("zip", "old", "script")]
        zipped(paths[-3], pickled)
        paths[-2].write_bytes(pickled)
        zipped(paths[-1], pickled, script=True)
    return paths


def test_attacks_by_pickle(refused: dict[str, tuple[float, str]]) -> None:
    """Each one: a line, less than a second of the processor, less than 50 MB."""
    for index, (name, (_, expected)) in enumerate(ATTACKS.items()):
        for kind in ("zip", "old", "script"):
            seconds, message = refused[f"{index}-{kind}.pt"]
            assert len(message) < 500 and "\n" not in message, message
            assert seconds < 1, (name, kind)
        kind = "script" if name == "modules of modules" else "zip"
        message = refused[f"{index}-{kind}.pt"][1]
        assert expected in message, (name, message)


def test_two_pickles_in_one_archive(tmp_path: Path) -> None:
    """One to be looked at and one to be read."""
    hostile = pickle.dumps({"state_dict": {}}, 2)
    entries = {"a/data.pkl": hostile, "b/data.pkl": hostile, "a/version": b"3\n"}
    path = zip_with(tmp_path / "a.pt", dict(entries), zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=r"a\.pt cannot be read \(2 pickles"):
        read_source(path)


def own_file(path: Path, header: str, size: int | None = None) -> Path:
    """A safetensors file of ours with one tensor and any header; `size` lies about its length."""
    content = {
        "__metadata__": {METADATA_KEY: header},
        ANCHOR: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", size or len(text)) + text + bytes(4))
    return path


def test_headers_that_lie(tmp_path: Path) -> None:
    """A billion layers, a header longer than the file, tensors that overlap or lie outside."""
    config = replace(CONFIG, image=replace(CONFIG.image, layers=10**9))
    header = small_header(config=config).to_json()
    with pytest.raises(ValueError, match="1 tensors for 1000000002 layers"):
        gem.create_gem_model("small", own_file(tmp_path / "layers.safetensors", header))
    for name, size in (("longer", 10**6), ("longest", 2**63), ("short", 5)):
        path = own_file(tmp_path / f"{name}.safetensors", header, size)
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            gem.create_gem_model("small", path)
    for offsets in ([0, 10**12], [8, 4], [-4, 0]):
        path = tmp_path / "offsets.safetensors"
        text = json.dumps(
            {ANCHOR: {"dtype": "F32", "shape": [1], "data_offsets": offsets}}
        ).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            gem.create_gem_model("small", path)


DEEP = "[" * 100_000
JSON_FILES = {
    "nested": ("config.json", DEEP, "not readable JSON"),
    "nested objects": ("config.json", '{"a":' * 100_000, "not readable JSON"),
    "long number": (
        "preprocessor_config.json",
        '{"image_mean": [%s, 1, 1]}' % ("9" * 400),
        "numbers",
    ),
    "longer number": (
        "preprocessor_config.json",
        '{"image_std": [%s, 1, 1]}' % ("9" * 9000),
        "JSON",
    ),
    "large number": ("preprocessor_config.json", '{"image_mean": [1e308, 1, 1]}', "numbers"),
    "no number": ("preprocessor_config.json", '{"image_std": [NaN, 1, 1]}', "numbers"),
    "long name": ("config.json", '{"text_config": {"hidden_act": "%s"}}' % ("a" * 10**6), "aaa"),
    "long text": ("config.json", '{"text_config": "%s"}' % ("a" * 10**6), "aaa"),
    "open_clip": ("open_clip_config.json", DEEP, "not readable JSON"),
    "open_clip mean": (
        "open_clip_config.json",
        '{"preprocess_cfg": {"mean": [1e308, 0, 0]}}',
        "numbers",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), JSON_FILES.values(), ids=JSON_FILES)
def test_json_beside_a_checkpoint(tmp_path: Path, name: str, content: str, message: str) -> None:
    """One short line that names the file."""
    state = state_of()
    if name == "open_clip_config.json":
        write_open_clip(state, tmp_path / "open_clip_model.safetensors")
    else:
        write_hugging_face(state, tmp_path, config={})
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}") as caught:
        read_source(tmp_path)
    text = str(caught.value)
    assert "\n" not in text and len(text) < len(str(tmp_path)) + 300


def test_a_user_who_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="~nosuchuser"):
        gem.create_gem_model("small", "~nosuchuser/x.safetensors")
    with pytest.raises(ValueError, match="~nosuchuser"):
        gem.create_gem_model("ViT-B/16", "openai", cache_dir="~nosuchuser")
    monkeypatch.setenv("GEM_LITE_WEIGHTS", "~nosuchuser")
    with pytest.raises(ValueError, match="~nosuchuser"):
        gem.create_gem_model("ViT-B/16", "openai")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, number: float) -> None:
    """They are neither written, nor taken from a file that is read whole."""
    model = small_model()
    state = model.network.state_dict()
    with torch.no_grad():
        model.network.visual.proj[3, 4] = number
    with pytest.raises(ValueError, match=r"visual\.proj holds numbers that are not finite"):
        gem.save(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    own = {"gem_lite": model.header.to_json()}
    save_file(state, tmp_path / "own.safetensors", metadata=own)
    with pytest.raises(ValueError, match=r"visual\.proj holds numbers that are not finite"):
        gem.create_gem_model("small", tmp_path / "own.safetensors", precision="bf16")


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    """A sum that overflows in float16 is no damage."""
    model = small_model()
    with torch.no_grad():
        model.network.visual.proj.fill_(60_000.0)
    gem.save(model, tmp_path / "a.safetensors")
    assert gem.create_gem_model("small", tmp_path / "a.safetensors", precision="fp16")


@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
def test_tensors_of_other_kinds(tmp_path: Path, kind: str) -> None:
    state = dict(small_model().network.state_dict())
    proj = state["visual.proj"]
    state["visual.proj"] = {
        "sparse": proj.to_sparse,
        "meta": lambda: proj.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(proj, 0.1, 0, torch.qint8),
    }[kind]()
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        read_source(tmp_path / "a.pt")


def test_links_are_followed_when_reading_and_replaced_when_writing(tmp_path: Path) -> None:
    """Hugging Face's cache is made of links. A written file replaces the link, not its target."""
    gem.save(small_model(), tmp_path / "real.safetensors")
    before = (tmp_path / "real.safetensors").read_bytes()
    link = tmp_path / "link.safetensors"
    try:
        link.symlink_to(tmp_path / "real.safetensors")
        (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    except OSError:
        pytest.skip("no symbolic links here")
    assert gem.create_gem_model("small", link)
    gem.save(small_model(seed=1), link)
    assert not link.is_symlink() and (tmp_path / "real.safetensors").read_bytes() == before
    with pytest.raises((FileNotFoundError, ValueError), match="loop"):
        read_source(tmp_path / "loop.safetensors")
    if Path("/dev/zero").exists():
        (tmp_path / "zero.pt").symlink_to("/dev/zero")
        with pytest.raises((FileNotFoundError, ValueError), match="zero"):
            read_source(tmp_path / "zero.pt")


# ---- pictures


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(h: int, w: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    return Image.fromarray(values)


def corrupt_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(saved(noise(20, 30), "JPEG", exif=exif))
    at = content.index(b"Exif\0\0") + 10
    content[at : at + 20] = b"\xff" * 20
    return bytes(content)


def animated() -> bytes:
    frames = [Image.new("RGB", (30, 20), name) for name in ("red", "blue", "green")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


def sixteen_bits() -> bytes:
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    return saved(Image.fromarray(values), "PNG")


GOOD: dict[str, tuple[bytes, tuple[int, int]]] = {
    "1 x 1": (saved(noise(1, 1), "PNG"), (1, 1)),
    "20000 x 10": (saved(Image.new("RGB", (20_000, 10)), "PNG"), (20_000, 10)),
    "animated": (animated(), (30, 20)),
    "16 bits": (sixteen_bits(), (30, 20)),
    "CMYK": (saved(noise(20, 30).convert("CMYK"), "JPEG"), (30, 20)),
    "corrupt EXIF": (corrupt_exif(), (30, 20)),
    "one bit": (saved(noise(20, 30).convert("1"), "PNG"), (30, 20)),
    "palette": (saved(noise(20, 30).convert("P"), "PNG", transparency=b"\0\x40"), (30, 20)),
    "RGBA": (saved(noise(20, 30).convert("RGBA"), "WEBP"), (30, 20)),
}


def test_odd_pictures_are_taken(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in RGB, and through the command to a sheet of maps and a label map of their size."""
    monkeypatch.chdir(tmp_path)
    for name, (content, size) in GOOD.items():
        (tmp_path / f"{name}.bin").write_bytes(content)
        picture = open_picture(tmp_path / f"{name}.bin")
        assert (picture.mode, picture.size) == ("RGB", size), name
    values = np.asarray(open_picture(tmp_path / "16 bits.bin"))[..., 0]
    assert values.min() == 0 and values.max() == 255 and len(np.unique(values)) > 200
    red, green, blue = open_picture(tmp_path / "animated.bin").getpixel((3, 3))
    assert red > 240 and max(green, blue) < 10  # the first frame
    files = [f"{name}.bin" for name in GOOD]
    model = ["--prompts", "cat", "--pretrained", str(weights)]
    assert main(["heatmap", *files, *model]) == 0
    assert main(["segment", *files, *model]) == 0
    for name, (_, size) in GOOD.items():
        with Image.open(tmp_path / "segments" / f"{name}.png") as labels:
            assert labels.size == size


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose head says a size that its few bytes of pixels do not have."""
    content = bytearray(saved(noise(4, 4), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", __import__("zlib").crc32(bytes(content[12:29])))
    return bytes(content)


BAD: dict[str, tuple[bytes, str]] = {
    "bomb": (png_that_claims(12_000, 12_000), "at most 80 million|too large"),
    "larger bomb": (png_that_claims(2**30, 2**30), "too large|pixels|cannot be read"),
    "too few pixels": (png_that_claims(4000, 4000), "cannot be read as a picture"),
    "truncated": (saved(noise(90, 90), "JPEG")[:2500], "cannot be read as a picture"),
    "empty": (b"", "is not a picture"),
    "text": (b"hello", "is not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
    "floats": (saved(Image.new("F", (4, 4)), "TIFF"), "mode F"),
    "zeros": (bytes(1000), "is not a picture"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=message) as caught:
        open_picture(path)
    assert str(path) in str(caught.value)
    with pytest.raises(PictureError, match="the upload"):
        open_picture(io.BytesIO(content), name="the upload")


def bombs(folder: Path) -> list[Path]:
    """A real one, of 10 kB, and one that only claims its size."""
    Image.new("1", (9000, 9000)).save(folder / "real.png")
    (folder / "claim.png").write_bytes(png_that_claims(12_000, 12_000))
    return [folder / "real.png", folder / "claim.png"]


def test_bombs_take_no_memory(refused: dict[str, tuple[float, str]]) -> None:
    """Refused by what the head says."""
    for name in ("real.png", "claim.png"):
        error = refused[name][1]
        assert error.startswith("PictureError: ") and "at most 80 million" in error, error


def test_the_limit_is_exact(tmp_path: Path) -> None:
    content = saved(Image.new("1", (100, 50)), "PNG")
    assert open_picture(io.BytesIO(content), name="x", max_pixels=5000).size == (100, 50)
    with pytest.raises(PictureError, match="100 x 50 pixels"):
        open_picture(io.BytesIO(content), name="x", max_pixels=4999)
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # below where Pillow begins to warn


# ---- words

WORDS = [
    "",
    " ",
    "\t\n",
    "\x00\x07\x1b[31m",
    "word " * 10_000,
    "a" * 100_000,
    "\u0627\u0644\u0642\u0637\u0629",
    "\u202e right to left",
    "\U0001f408\u200d\U0001f9ba" * 50,
    "\ud800",
    "cat",
    "cat",
    "{}",
    "%s {0} {name}",
    "<end_of_text>",
    "&amp;amp;lt;" * 100,
    "e" + "\u0301" * 5000,
]


def test_any_words_give_maps() -> None:
    model = small_model()
    with torch.no_grad():
        maps = model(random_images(1, 40, 48), WORDS)
    assert maps.shape == (1, len(WORDS), 40, 48) and bool(maps.isfinite().all())
    assert torch.equal(maps[:, WORDS.index("cat")], maps[:, WORDS.index("cat") + 1])
    assert model.visualize(Image.new("RGB", (48, 40)), WORDS, maps)


def test_any_words_are_rows_of_tokens() -> None:
    tokens = Tokenizer()
    rows = tokens(WORDS)
    assert rows.shape == (len(WORDS), 77)
    assert (rows.argmax(dim=1) > 0).all() and (rows[:, 0] == tokens.start_id).all()
