"""CLIP's byte-pair encoding: strings in, token ids out.

A text is cleaned and lowered, split into words, and each word is spelled in UTF-8 bytes, the last
of which carries an end-of-word mark. Ranked merges then join neighbouring symbols, the lowest rank
first, until none applies. Ids follow the same order: 256 bytes, 256 bytes that end a word, one
symbol per merge, the start token, the end token.
"""

from __future__ import annotations

import gzip
import html
import zlib
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING

import ftfy
import regex

if TYPE_CHECKING:
    from torch import Tensor  # ids can be had without it

MERGES_NAME = "bpe_merges.txt.gz"
FULL_VOCAB = 49408
START_TEXT, END_TEXT = "<start_of_text>", "<end_of_text>"

_END_OF_WORD = "</w>"
_SMALLEST_VOCAB = 514  # 256 bytes, each inside a word and at its end, and the two special tokens
_CACHED_WORDS = 8192
_CONTEXT = range(2, 1 << 31), "at least 2, for the start and end tokens"


class Tokenizer:
    """CLIP's tokenizer: a text or a list of texts -> int64 tensor [n, context_length], zero-padded.

    A row is the start token, the text's ids, the end token, zeros. A text that is too long is cut,
    and the end token still comes last. The strings `<start_of_text>` and `<end_of_text>` inside a
    text stand for those tokens, as in open_clip.

    The object holds nothing but tables and a bounded cache of words. It can be pickled, merges
    included, so it opens where the merges file is not.

    Args:
        merges_path: file of ranked merges, one "left right" pair a line, gzipped or plain, such as
            ours or CLIP's own; None looks for ours with `find_merges()`.
        vocab_size: number of tokens, 514 to 49408. A smaller vocabulary keeps the first
            `vocab_size - 514` merges, so every text can still be written, in more tokens; the start
            and end tokens are always the last two ids.
        context_length: tokens in a row unless a call says otherwise; at least 2.

    Raises:
        FileNotFoundError: `merges_path` does not exist.
        TypeError: `vocab_size` or `context_length` is not an integer.
        ValueError: one of them is out of range, or the file is damaged or holds too few merges.
    """

    def __init__(
        self,
        *,
        merges_path: Path | str | None = None,
        vocab_size: int = FULL_VOCAB,
        context_length: int = 77,
    ) -> None:
        bounds = f"{_SMALLEST_VOCAB} (bytes only) to {FULL_VOCAB} (CLIP's own)"
        _check_int("vocab_size", vocab_size, range(_SMALLEST_VOCAB, FULL_VOCAB + 1), bounds)
        _check_int("context_length", context_length, *_CONTEXT)
        path = find_merges() if merges_path is None else Path(merges_path)
        merges = _read_merges(path, vocab_size - _SMALLEST_VOCAB)
        self.vocab_size = _SMALLEST_VOCAB + len(merges)
        self.context_length = context_length
        self.start_id, self.end_id = self.vocab_size - 2, self.vocab_size - 1
        self._byte_symbols = _byte_symbols()
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        inner = list(self._byte_symbols.values())
        self._symbols = inner + [symbol + _END_OF_WORD for symbol in inner]
        self._symbols += [pair.replace(" ", "") for pair in merges]
        self._ids = dict(zip(self._symbols, range(self.start_id), strict=True))
        # The flag matters even on lowered text: lower() keeps the long s, which then matches the s
        # of "'s".
        self._words = regex.compile(
            rf"{START_TEXT}|{END_TEXT}|'s|'t|'re|'ve|'m|'ll|'d"
            r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE,
        )
        self._spelled: dict[str, tuple[int, ...]] = {}  # ids of words seen before

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without the start and end tokens and of any length.

        Raises:
            TypeError: `text` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"expected a string to encode, got {type(text).__name__}")
        ids: list[int] = []
        for word in self._words.findall(clean(text)):
            if word == START_TEXT:
                ids.append(self.start_id)
            elif word == END_TEXT:
                ids.append(self.end_id)
            else:
                ids.extend(self._word_ids(word))
        return ids

    def _word_ids(self, word: str) -> tuple[int, ...]:
        ids = self._spelled.get(word)
        if ids is None:
            if len(self._spelled) >= _CACHED_WORDS:
                self._spelled.clear()
            ids = _word_ids(self._byte_symbols, self._ranks, self._ids, word)
            self._spelled[word] = ids
        return ids

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """Cleaned text of token ids: lower case, one space between words.

        Start tokens are left out and reading stops at the first end token, so a row of `__call__`
        decodes as it is. Bytes that are not valid UTF-8 (a text cut within a character) give the
        replacement character.

        Raises:
            ValueError: an id lies outside the vocabulary.
        """
        byte_of = {symbol: byte for byte, symbol in self._byte_symbols.items()}
        spelled = bytearray()
        for token_id in map(int, ids):
            if token_id == self.end_id:
                break
            if token_id == self.start_id:
                continue
            if not 0 <= token_id < self.start_id:
                raise ValueError(f"token id {token_id}; the vocabulary has 0 to {self.end_id}")
            symbol = self._symbols[token_id]
            inner = symbol.removesuffix(_END_OF_WORD)
            spelled += bytes(byte_of[character] for character in inner)
            spelled += b" " if inner != symbol else b""
        return spelled.decode("utf-8", errors="replace").rstrip(" ")

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Token rows of one text or of several -> int64 tensor [n, context_length] on the CPU.

        Args:
            texts: a string, or a list or tuple of strings; an empty list gives no rows.
            context_length: tokens in a row, at least 2; None takes the tokenizer's own.

        Raises:
            TypeError: a text is not a string, or `context_length` is not an integer.
            ValueError: `context_length` is smaller than 2.
        """
        import torch

        context = self.context_length if context_length is None else context_length
        _check_int("context_length", context, *_CONTEXT)
        rows = torch.zeros(len(_text_list(texts)), context, dtype=torch.long)
        for row, text in zip(rows, _text_list(texts), strict=True):
            ids = [self.start_id, *self.encode(text)[: context - 2], self.end_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows  # [n, context]

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, context_length={self.context_length})"


def find_merges() -> Path:
    """Path of the merges file: in `tokenizer/` inside or beside the package, or in a wheel's data.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(__file__).resolve().parent
    folders = (package / "data", package, package.parent)
    places = [folder / "tokenizer" / MERGES_NAME for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no merges file at {' or '.join(map(str, places))}; copy the project's tokenizer/ folder "
        "into the package or beside it, or pass merges_path="
    )


def clean(text: str) -> str:
    """Text as CLIP reads it: mended, HTML entities resolved twice, single spaces, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip().lower()


def _word_ids(
    byte_symbols: dict[int, str], ranks: dict[str, int], ids: dict[str, int], word: str
) -> tuple[int, ...]:
    """Merges by a queue of pairs over linked symbols: n log n steps for n bytes."""
    symbols = [byte_symbols[byte] for byte in word.encode("utf-8")]
    symbols[-1] += _END_OF_WORD
    count = len(symbols)
    before, after = list(range(-1, count - 1)), list(range(1, count + 1))
    queue: list[tuple[int, int]] = []  # rank of a pair, place of its left symbol

    def rank_at(place: int) -> int | None:
        if place < 0 or after[place] == count:
            return None
        return ranks.get(f"{symbols[place]} {symbols[after[place]]}")

    def offer(place: int) -> None:
        if (rank := rank_at(place)) is not None:
            heappush(queue, (rank, place))

    for place in range(count):
        offer(place)
    while queue:
        lowest, joined = queue[0][0], []
        # Every pair of this rank, from the left, before any that they make.
        while queue and queue[0][0] == lowest:
            _, place = heappop(queue)
            if rank_at(place) == lowest:  # else a neighbour was joined meanwhile
                gone = after[place]
                symbols[place] += symbols[gone]
                symbols[gone], after[place] = "", after[gone]
                if after[place] < count:
                    before[after[place]] = place
                joined.append(place)
        for place in joined:
            offer(before[place])
            offer(place)
    return tuple(ids[symbol] for symbol in symbols if symbol)


def _byte_symbols() -> dict[int, str]:
    """One printable character for each byte, in the order of the vocabulary.

    Bytes that Latin-1 prints keep its character and come first; the others follow, in characters
    from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printed))
    return {b: chr(b) for b in printed} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def _read_merges(path: Path, count: int) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no merges file at {path}; leave merges_path out to use the one that comes along"
        )
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"cannot read the merges in {path}: {error}; fetch the file again"
        ) from error
    lines = text.removesuffix("\n").split("\n")
    if "#version" in lines[0]:  # the first line of CLIP's and Hugging Face's own files
        del lines[0]
    merges = lines[:count]
    if len(merges) < count:
        raise ValueError(f"{path} holds {len(merges)} merges; the vocabulary needs {count}")
    if not regex.fullmatch(r"(?:[^ \n]+ [^ \n]+\n)*", "".join(f"{line}\n" for line in merges)):
        raise ValueError(
            f"{path} is not a list of merges: expected two symbols and one space on each line"
        )
    return merges


def _text_list(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"expected a string or a list of strings, got {type(texts).__name__}")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"expected strings, but text {place} is {type(text).__name__}: {text!r:.80}"
            )
    return list(texts)


def _check_int(name: str, value: int, allowed: range, meaning: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"expected an integer for {name}, got {type(value).__name__}: {value!r:.80}"
        )
    if value not in allowed:
        raise ValueError(f"{name} is {value}; expected {meaning}")
