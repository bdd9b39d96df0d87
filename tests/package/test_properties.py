"""Properties that hold for any input, searched for counterexamples with Hypothesis."""

import contextlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gem_lite.checkpoints.header import Header
from gem_lite.checkpoints.ours import read_header
from gem_lite.method.segment import label_maps
from gem_lite.pictures.transform import ImageTransform
from gem_lite.tokenizer import Tokenizer, clean
from gem_lite.tools.cli import main

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from small import small_header  # noqa: E402

# The same examples every time, no folder of found ones, no limit of time on a busy machine.
quick = settings(max_examples=60, derandomize=True, database=None, deadline=None)

TOKENS = Tokenizer()
TEXTS = st.text(max_size=60) | st.text("abc '&<>;_-\n\u0301\u00e9\u202e0123", max_size=200)


# ---- tokenizer


@quick
@given(TEXTS)
def test_rows_begin_and_end(text: str) -> None:
    row = TOKENS(text)[0].tolist()
    end = row.index(TOKENS.end_id)
    assert row[0] == TOKENS.start_id and not any(row[end + 1 :])
    ids = TOKENS.encode(text)
    assert row[1:end] == ids[:75] or TOKENS.end_id in ids


@quick
@given(st.text(max_size=40))
def test_what_is_read_back_is_read_the_same(text: str) -> None:
    """Decoding gives a text of the same tokens, as long as no special token stands in it."""
    ids = TOKENS.encode(text)
    if TOKENS.end_id in ids or TOKENS.start_id in ids:
        return
    again = TOKENS.decode(ids)
    # Tokens are spelled with a space behind each word, where the text may have had none.
    assert again.replace(" ", "") == clean(text).replace(" ", "")


@quick
@given(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    st.text(" \t\n", min_size=1),
)
def test_space_and_case_do_not_matter(word: str, space: str) -> None:
    assert TOKENS.encode(f"{space}{word.upper()}{space}x") == TOKENS.encode(f"{word.lower()} x")


# ---- transform


@quick
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 50), st.integers(1, 50),
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_picture_becomes_a_tensor(
    w: int, h: int, out_h: int, out_w: int, mode: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    if mode == "I;16":
        picture = Image.fromarray(random.integers(0, 65536, (h, w), dtype=np.uint16))
    else:
        picture = Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)).convert(
            "RGB" if mode == "LA" else mode
        )
        picture = picture.convert("LA") if mode == "LA" else picture
    transform = ImageTransform((out_h, out_w))
    tensor = transform(picture)
    assert tensor.shape == (3, out_h, out_w) and tensor.dtype == torch.float32
    mean, std = (torch.tensor(each)[:, None, None] for each in (transform.mean, transform.std))
    pixels = tensor * std + mean
    assert -1e-5 <= float(pixels.min()) and float(pixels.max()) <= 1 + 1e-5
    short = ImageTransform(min(out_h, out_w))(picture)
    assert min(short.shape[1:]) == min(out_h, out_w)


# ---- the header of a weight file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@quick
@given(st.data())
def test_a_changed_header_is_a_header_or_a_value_error(data: st.DataObject) -> None:
    """Any value in any place: refused with ValueError, or a header that says what it was given."""
    content = json.loads(small_header().to_json())
    place: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        header = Header.from_json(json.dumps(content))
    except ValueError:
        return
    assert json.loads(header.to_json()) == json.loads(json.dumps(content))


@quick
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1) | st.integers(0, 300))
def test_any_bytes_are_a_weight_file_or_a_value_error(content: bytes, size: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(struct.pack("<Q", size) + content)
        with contextlib.suppress(ValueError):
            read_header(path)


# ---- segmentation


@quick
@given(st.data())
def test_labels_and_probabilities(data: st.DataObject) -> None:
    names = data.draw(st.integers(1, 6), label="names")
    classes = data.draw(st.integers(1, names), label="classes")
    threshold = data.draw(st.none() | st.floats(0, 1), label="threshold")
    scale = data.draw(st.floats(0.1, 200), label="scale")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    cosines = 2 * torch.rand(2, names, 5, 4, generator=generator) - 1
    found = label_maps(cosines, classes=classes, threshold=threshold, scale=scale)
    labels = found.labels
    assert labels.shape == (2, 5, 4) and 0 <= int(labels.min()) and int(labels.max()) <= classes
    assert found.confidence.shape == (2, 5, 4)
    assert 0 <= float(found.confidence.min()) <= float(found.confidence.max()) <= 1 + 1e-5
    best = cosines.argmax(dim=1)
    certain = (scale * cosines).softmax(dim=1).amax(dim=1)
    for label, winner, chance in zip(
        labels.flatten(), best.flatten(), certain.flatten(), strict=True
    ):
        if int(winner) >= classes or (threshold is not None and float(chance) < threshold - 1e-6):
            assert int(label) == 0
        elif threshold is None or float(chance) > threshold + 1e-6:
            assert int(label) == int(winner) + 1


# ---- the command line

WORDS = st.text(max_size=12).filter(lambda text: "\0" not in text)
OPTIONS = st.sampled_from(
    ["heatmap", "segment", "models", "convert", "--prompts", "--size", "--json", "--model", "-h",
     "--device", "--pretrained", "--window", "--threshold", "--", "none.png", "-1", "nan", "0"]
)  # fmt: skip


@quick
@given(st.lists(OPTIONS | WORDS, max_size=7))
def test_any_arguments_end_well(arguments: list[str]) -> None:
    """Exit code 0 or 2; a mistake is one line; no traceback, and nothing is fetched or written."""
    if {"app", "demo", "bench-quality"} & set(arguments) or "convert" in arguments[:1]:
        return  # one serves, the others write or fetch what they are asked for
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as left:
            code = left.code
    assert code in (0, 2), (code, err.getvalue())
    if code == 2:
        assert out.getvalue() == "" and len(err.getvalue().splitlines()) == 1, err.getvalue()
        assert err.getvalue().startswith("gem-lite")
