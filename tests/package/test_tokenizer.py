"""The tokenizer against open_clip's recorded ids, a naive reference and transformers."""

import copy
import gzip
import hashlib
import importlib.util
import json
import pickle
import random
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from gem_lite import tokenizer as module
from gem_lite.tokenizer import Tokenizer, clean, find_merges

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS = ["cat", "remote control", "a très long château, naïve café &amp; 犬 🐱!", "elon musk"]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer()


@pytest.fixture(scope="module")
def recorded() -> list[dict]:
    """What open_clip 2.23's tokenizer returned: {text, ids, row}."""
    with gzip.open(GOLDEN / "tokens.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def merges() -> list[str]:
    return gzip.decompress(find_merges().read_bytes()).decode("utf-8").splitlines()


def padded(row: list[int], context: int = 77) -> list[int]:
    return row + [0] * (context - len(row))


# ---- against open_clip


def test_ids_and_rows_are_open_clips(clip: Tokenizer, recorded: list[dict]) -> None:
    assert len(recorded) == 620
    wrong = [case["text"] for case in recorded if clip.encode(case["text"]) != case["ids"]]
    assert not wrong
    rows = clip([case["text"] for case in recorded])
    assert rows.dtype == torch.int64
    assert rows.tolist() == [padded(case["row"]) for case in recorded]


@pytest.mark.parametrize("model", ["quickgelu_p16", "gelu_p32"])
def test_prompts_of_the_golden_models(clip: Tokenizer, model: str) -> None:
    with np.load(GOLDEN / "golden.npz") as golden:
        expected = torch.from_numpy(golden[f"{model}/tokens"])
    assert torch.equal(clip([f"a photo of a {prompt}." for prompt in PROMPTS]), expected)


def test_hello_world(clip: Tokenizer) -> None:
    assert clip("hello world").tolist() == [padded([49406, 3306, 1002, 49407])]


@pytest.mark.parametrize(
    ("text", "ids"),  # recorded from open_clip 2.23
    [
        ("", []),
        (" \t\n\u3000", []),
        ("<start_of_text>cat<END_OF_TEXT>", [49406, 2368, 49407]),
        ("don't DON\u2019T", [847, 713, 847, 713]),
        ("it'\u017fa", [585, 6, 129, 379, 320]),  # the long s counts as the s of 's
        ("<\u017ftart_of_text>", [27, 129, 123, 16707, 62, 684, 62, 18169, 285]),
        ("&amp;amp;lt;b&gt;", [283, 321, 285]),
        ("< &amp;lt;b", [283, 283, 321]),  # ftfy leaves entities alone beside a <
        ("2024", [273, 271, 273, 275]),
        ("Ã©tÃ©", [3459, 39694]),  # UTF-8 read as Latin-1
        ("\u200bzero\u200dwidth\ufeff", [9844, 5848, 728, 491, 23571]),
        ("ΣΑΣ", [139, 225, 138, 109, 139, 480]),  # the last sigma has a form of its own
        ("👩\u200d👩\u200d👧", [26304, 26304, 964, 356]),
    ],
)
def test_corners_of_open_clip(clip: Tokenizer, text: str, ids: list[int]) -> None:
    assert clip.encode(text) == ids


# ---- against transformers


def test_transformers_agrees(
    clip: Tokenizer, merges: list[str], recorded: list[dict], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = [*ALPHABET, *(symbol + "</w>" for symbol in ALPHABET)]
    vocabulary += [merge.replace(" ", "") for merge in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {symbol: token_id for token_id, symbol in enumerate(vocabulary)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    # Theirs neither mends text nor resolves entities, so it gets the cleaned one.
    texts = [clean(case["text"]) for case in recorded if "<" not in case["text"]]
    wrong = [text for text in texts if theirs(text).input_ids != [49406, *clip.encode(text), 49407]]
    assert len(texts) > 500
    assert not wrong


# ---- against a naive reference, with vocabularies of any size


def byte_symbol(byte: int) -> str:
    """A byte that Latin-1 prints stands for itself; the n-th of the others is U+0100 + n."""
    unprinted = [*range(33), *range(127, 161), 173]
    return chr(256 + unprinted.index(byte)) if byte in unprinted else chr(byte)


ALPHABET = sorted(byte_symbol(byte) for byte in range(256))


def naive_ids(word: str, merges: list[str]) -> list[int]:
    """Each merge in turn over the whole word."""
    symbols = [byte_symbol(byte) for byte in word.encode("utf-8")]
    symbols[-1] += "</w>"
    for merge in merges:
        left, right = merge.split(" ")
        place = 0
        while place < len(symbols) - 1:
            if symbols[place] == left and symbols[place + 1] == right:
                symbols[place : place + 2] = [left + right]
            place += 1
    vocabulary = [*ALPHABET, *(symbol + "</w>" for symbol in ALPHABET)]
    vocabulary += [merge.replace(" ", "") for merge in merges]
    return [vocabulary.index(symbol) for symbol in symbols]


@pytest.mark.parametrize("vocab_size", [514, 515, 600, 2048])
def test_smaller_vocabularies(vocab_size: int, merges: list[str]) -> None:
    small = Tokenizer(vocab_size=vocab_size)
    assert (small.start_id, small.end_id) == (vocab_size - 2, vocab_size - 1)
    for word in ["in", "a", "aaaaa", "within", "banana", "château", "犬", "🐱", "tototo", "!!!!"]:
        ids = small.encode(word)
        assert ids == naive_ids(word, merges[: vocab_size - 514]), word
        assert small.decode(ids) == word
    assert small("in")[0, 0] == vocab_size - 2
    assert small("<end_of_text>")[0, 1] == vocab_size - 1


def test_long_words_follow_the_reference(clip: Tokenizer, merges: list[str]) -> None:
    rng = random.Random(0)
    for _ in range(5):
        word = "".join(rng.choices("aeinst", k=30))
        assert clip.encode(word) == naive_ids(word, merges)


def test_an_unbroken_word_of_any_length(merges: list[str]) -> None:
    """The same ids as of a short word, for a number of steps that grows with it, not its square."""

    class Counted(dict[str, int]):
        looked = 0

        def get(self, key: str, default: Any = None) -> Any:
            self.looked += 1
            return super().get(key, default)

    small = Tokenizer(vocab_size=2048)
    rng = random.Random(2)
    for count in (1_500, 15_000):
        word = "".join(rng.choices("aeinst", k=count))
        ranks = Counted(small._ranks)
        ids = module._word_ids(small._byte_symbols, ranks, small._ids, word)
        assert ranks.looked < 8 * count
        assert small.decode(ids) == word
        if count == 1_500:
            assert list(ids) == small.encode(word) == naive_ids(word, merges[: 2048 - 514])


def test_any_text_can_be_read_back(clip: Tokenizer) -> None:
    rng = random.Random(1)
    tiny = Tokenizer(vocab_size=1000)
    for _ in range(300):
        text = "".join(
            chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)])) for _ in range(30)
        )
        for tokenizer in (clip, tiny):
            decoded = tokenizer.decode(tokenizer.encode(text))
            assert "".join(decoded.split()) == "".join(clean(text).split()), ascii(text)


# ---- rows


def test_a_long_text_keeps_the_end_token_last(clip: Tokenizer) -> None:
    row = clip("cat " * 100)
    assert row.tolist() == [[49406, *[2368] * 75, 49407]]
    assert clip("cat " * 75).tolist() == row.tolist()


@pytest.mark.parametrize(
    ("context", "row"),
    [(2, [49406, 49407]), (3, [49406, 320, 49407]), (6, [49406, 320, 2368, 49407, 0, 0])],
)
def test_context_lengths(clip: Tokenizer, context: int, row: list[int]) -> None:
    assert clip("a cat", context).tolist() == [row]
    assert clip(["a cat"], context_length=context).tolist() == [row]
    assert Tokenizer(vocab_size=49408, context_length=context)("a cat").tolist() == [row]


def test_lists_and_their_shapes(clip: Tokenizer) -> None:
    assert clip(["cat", "dog"]).shape == (2, 77)
    assert torch.equal(clip(("cat", "dog")), torch.cat([clip("cat"), clip("dog")]))
    assert clip([]).shape == (0, 77)
    assert clip([]).dtype == torch.int64


def test_decode_reads_rows(clip: Tokenizer) -> None:
    row = clip("A  Photo of\ta café!")[0]
    assert clip.decode(row) == clip.decode(row.tolist()) == "a photo of a café !"
    assert clip.decode([]) == ""
    assert clip.decode(clip.encode("🐱")[:-1] or [174]) == "\ufffd"


@pytest.mark.parametrize("token_id", [-1, 49408])
def test_decode_refuses_ids_outside_the_vocabulary(clip: Tokenizer, token_id: int) -> None:
    with pytest.raises(ValueError, match=f"token id {token_id}.* 0 to 49407"):
        clip.decode([320, token_id])


# ---- wrong input


@pytest.mark.parametrize("texts", [None, 3, b"cat", {"cat"}, np.array(["cat"])])
def test_texts_of_a_wrong_type(clip: Tokenizer, texts: object) -> None:
    with pytest.raises(TypeError, match=f"list of strings, got {type(texts).__name__}"):
        clip(texts)  # type: ignore[arg-type]


def test_the_text_that_is_no_string_is_named(clip: Tokenizer) -> None:
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        clip(["cat", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="got list"):
        clip.encode(["cat"])  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [1, 0, -5])
def test_context_length_too_small(clip: Tokenizer, context: int) -> None:
    with pytest.raises(ValueError, match=f"context_length is {context}; expected at least 2"):
        clip("cat", context)
    with pytest.raises(ValueError, match=f"context_length is {context}"):
        Tokenizer(context_length=context)


@pytest.mark.parametrize("value", [7.0, "77", True])
def test_numbers_of_a_wrong_type(clip: Tokenizer, value: object) -> None:
    with pytest.raises(TypeError, match="context_length"):
        clip("cat", value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="vocab_size"):
        Tokenizer(vocab_size=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab_size", [513, 0, 49409])
def test_vocab_size_out_of_range(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}; expected 514 .* 49408"):
        Tokenizer(vocab_size=vocab_size)


# ---- copies


@pytest.mark.parametrize("vocab_size", [514, 3000, 49408])
def test_copies_and_pickles(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tokenizer(vocab_size=vocab_size, context_length=20)
    text = "a naïve cat's 2 犬"
    expected = original(text)
    monkeypatch.setattr(module, "find_merges", lambda: pytest.fail("a pickle needs no file"))
    for other in (
        copy.copy(original),
        copy.deepcopy(original),
        pickle.loads(pickle.dumps(original)),
    ):
        assert torch.equal(other(text), expected)
        assert other.decode(expected[0]) == original.decode(expected[0])
        assert repr(other) == f"Tokenizer(vocab_size={vocab_size}, context_length=20)"


def test_the_cache_is_bounded_and_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED_WORDS", 10)
    first, second = Tokenizer(vocab_size=514), Tokenizer(vocab_size=516)
    assert first.encode("the") != second.encode("the")
    other = copy.deepcopy(first)
    words = "the quick brown fox jumps over a lazy dog and then does it again"
    ids = first.encode(words)
    assert 0 < len(first._spelled) <= 10 and list(other._spelled) == ["the"]
    assert ids == first.encode(words) == other.encode(words)


# ---- the merges file


def test_the_data_is_what_its_readme_says() -> None:
    path = find_merges()
    data = path.read_bytes()
    readme = (Path(__file__).parents[2] / "tokenizer" / "README.md").read_text(encoding="utf-8")
    for content in (data, gzip.decompress(data)):
        line = f"{len(content):,} | `{hashlib.sha256(content).hexdigest()}`"
        assert line in readme
    assert gzip.decompress(data).count(b"\n") == 49408 - 514
    assert data[4:8] == bytes(4), "a time stamp in the file"


def test_other_forms_of_the_file(clip: Tokenizer, merges: list[str], tmp_path: Path) -> None:
    plain = tmp_path / "merges.txt"
    plain.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    longer = tmp_path / "long.txt.gz"
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, "jeky ll</w>"]
    longer.write_bytes(gzip.compress("\n".join(lines).encode("utf-8")))
    for path in (plain, str(longer)):
        assert torch.equal(Tokenizer(merges_path=path)(PROMPTS), clip(PROMPTS))


def test_damaged_files(tmp_path: Path) -> None:
    good = find_merges().read_bytes()
    bad = {
        "cut.gz": (good[:1000], "cannot read the merges"),
        "flipped.gz": (good[:5000] + b"\0\0\0\0" + good[5004:], "cannot read the merges"),
        "bytes.txt": (b"\xff\xfe\xfa", "cannot read the merges"),
        "short.txt": (b"i n\nt h\n", "holds 2 merges; the vocabulary needs 48894"),
        "words.txt": (b"no merges in here\n" * 48894, "not a list of merges"),
    }
    for name, (content, message) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            Tokenizer(merges_path=tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.gz"))):
        Tokenizer(merges_path=tmp_path / "none.gz")


def vendored(folder: Path) -> ModuleType:
    """The module alone, in a package folder of another name."""
    folder.mkdir(parents=True)
    path = shutil.copy(module.__file__, folder / "tokenizer.py")
    spec = importlib.util.spec_from_file_location("vendored_tokenizer", path)
    assert spec is not None and spec.loader is not None
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    return copied


def test_merges_are_found_inside_the_package_or_beside_it(tmp_path: Path) -> None:
    copied = vendored(tmp_path / "other")
    inside, beside = tmp_path / "other" / "tokenizer", tmp_path / "tokenizer"
    with pytest.raises(FileNotFoundError, match="merges_path=") as caught:
        copied.Tokenizer()
    assert str(inside) in str(caught.value)
    assert str(beside) in str(caught.value)
    for folder in (beside, inside):  # the one inside is preferred
        folder.mkdir()
        shutil.copy(find_merges(), folder)
        assert copied.find_merges().parent == folder.resolve()
    assert copied.Tokenizer().encode("cat") == [2368]
