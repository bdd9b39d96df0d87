"""What a pickle would do, worked out without doing it, and only what CLIP checkpoints need allowed.

`torch.load(weights_only=True)` runs no foreign code, but allows calls that take gigabytes or hours.
Here each instruction is followed on a stack of names and constants, nothing is constructed, and
every call is held against a list of our own.
"""

import pickletools
import re
from dataclasses import dataclass, field
from typing import IO, Any, cast

MOST_INSTRUCTIONS = 500_000  # ViT-bigG/14 with its optimizer: 150,000
LONGEST_ARGUMENT = 1 << 24  # bytes
MOST_LOOKUPS = 5_000_000  # calls x names, in PyTorch's unpickler

# Names that stand for data beside the weights, which is not kept (`archive.Inert`).
INERT = re.compile(
    r"argparse\.Namespace|numpy\.dtype|numpy\.dtypes\.\w+|numpy\.(core|_core)\.multiarray\.scalar"
)
SCRIPT_CLASS = re.compile(r"__torch__\.\S+")
SCRIPT_CALL = re.compile(r"torch\.jit\._pickle\.\w+")
REBUILD = re.compile(r"torch\._utils\._rebuild_(tensor_v2|tensor_v3|parameter)")
TORCH = re.compile(
    r"torch\.(Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch\.storage\.UntypedStorage|torch\.(float|bfloat|int|uint)\w+|torch\.bool"
    r"|torch\.(Size|device)"
)
# Bytes of a number, by the name of its storage.
WIDTHS = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2}
ORDERED_DICT, ENCODE = "collections.OrderedDict", "_codecs.encode"


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names."""

    text: str


@dataclass(frozen=True)
class Result:
    """What a call or an empty container would be: its kind, such as `dict`."""

    kind: str


class Refused(ValueError):
    """The pickle does what no CLIP checkpoint does; or is damaged."""


@dataclass
class Contents:
    """What was met in a pickle."""

    names: set[str] = field(default_factory=set)
    calls: int = 0
    storages: dict[Any, int] = field(default_factory=dict)  # key: bytes that it claims to hold

    @property
    def foreign(self) -> list[str]:
        """Names that a checkpoint has no use for."""
        allowed = (INERT, SCRIPT_CLASS, SCRIPT_CALL, REBUILD, TORCH)
        return sorted(
            name
            for name in self.names - {ORDERED_DICT, ENCODE}
            if not any(pattern.fullmatch(name) for pattern in allowed)
        )


def inspect(pickle: bytes | IO[bytes]) -> Contents:
    """Follow one pickle, from where a file stands, to its end.

    Raises Refused for an instruction, a call or a key that CLIP checkpoints have no use for. Names
    that are foreign are not refused here, so that all of them can be told.
    """
    contents = Contents()
    machine = _Machine(contents)
    try:
        steps: Any = pickletools.genops(
            pickle if isinstance(pickle, bytes) else cast("IO[bytes]", _Bounded(pickle))
        )
        for count, (opcode, argument, _) in enumerate(steps):
            if count >= MOST_INSTRUCTIONS:
                raise Refused(f"more than {MOST_INSTRUCTIONS} instructions")
            machine.step(opcode.name, argument)
            if contents.calls * len(contents.names) > MOST_LOOKUPS:
                raise Refused(f"{contents.calls} calls of {len(contents.names)} names")
    except Refused:
        if not contents.foreign:
            raise
    except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        if not contents.foreign:
            raise Refused(f"damaged: {error}") from error
    return contents


class _Bounded:
    """A file of which nobody reads more at once than an argument may have."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tell, self.readline = file.tell, file.readline
        self._read = file.read

    def read(self, count: int) -> bytes:
        if count > LONGEST_ARGUMENT:
            raise Refused(f"an argument of {count} bytes")
        return self._read(count)


class _Machine:
    """The stack, the marks and the memo of an unpickler that constructs nothing."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name == "GLOBAL":
            # pickletools joins module and name by a space.
            self.stack.append(Name(argument.replace(" ", ".")))
            self.contents.names.add(self.stack[-1].text)
        elif name in _METHODS:
            getattr(self, f"_{name.lower()}")()
        elif name not in ("PROTO", "STOP"):
            raise Refused(f"the instruction {name}")

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Refused("damaged: an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _tuple(self) -> None:
        items = self._to_mark()  # which is another stack until then
        self.stack.append(tuple(items))

    def _tuple1(self) -> None:
        self.stack.append(tuple(self._pop(1)))

    def _tuple2(self) -> None:
        self.stack.append(tuple(self._pop(2)))

    def _tuple3(self) -> None:
        self.stack.append(tuple(self._pop(3)))

    def _append(self) -> None:
        self._pop(1)

    def _appends(self) -> None:
        self._to_mark()

    def _setitem(self) -> None:
        self._check_keys(self._pop(2))

    def _setitems(self) -> None:
        self._check_keys(self._to_mark())

    def _check_keys(self, items: list[Any]) -> None:
        for key in items[::2]:  # tuples may take for ever, and large numbers all hash alike
            if type(key) is not str and (type(key) is not int or abs(key) >= 1 << 32):
                raise Refused("a key that is neither a string nor a small number")

    def _reduce(self) -> None:
        function, arguments = self._pop(2)
        self.contents.calls += 1
        self.stack.append(Result(_called(function, arguments)))

    def _newobj(self) -> None:
        function, _ = self._pop(2)
        self.contents.calls += 1
        if not isinstance(function, Name) or not (
            INERT.fullmatch(function.text) or SCRIPT_CLASS.fullmatch(function.text)
        ):
            raise Refused("an object of a class that is not allowed")
        self.stack.append(Result(function.text))

    def _build(self) -> None:
        target, _ = self._pop(2)
        self.contents.calls += 1
        kind = target.kind if isinstance(target, Result) else ""
        if kind != ORDERED_DICT and not INERT.fullmatch(kind) and not SCRIPT_CLASS.fullmatch(kind):
            raise Refused("attributes of an object that has none")
        self.stack.append(target)

    def _binpersid(self) -> None:
        (identity,) = self._pop(1)
        if not isinstance(identity, tuple) or len(identity) < 5:
            raise Refused("damaged: a storage without a description")
        key, count = identity[2], identity[4]
        if type(key) is not str or type(count) is not int or count < 0:
            raise Refused("damaged: a storage with a wrong description")
        kind = identity[1].text if isinstance(identity[1], Name) else ""
        claim = count * WIDTHS.get(kind.removeprefix("torch.").removesuffix("Storage"), 1)
        self.contents.storages[key] = max(claim, self.contents.storages.get(key, 0))
        self.stack.append(Result("storage"))


_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "EMPTY_LIST": Result("list"),
    "EMPTY_DICT": Result("dict"),
}
_METHODS = (
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
)
_ARGUMENTS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
)


def _called(function: Any, arguments: Any) -> str:
    """The kind of what a call gives. Raises Refused for a call that is not allowed."""
    name = function.text if isinstance(function, Name) else ""
    if not isinstance(arguments, tuple):
        raise Refused("damaged: a call without arguments")
    first = arguments[0] if arguments else None
    if (
        INERT.fullmatch(name)
        or REBUILD.fullmatch(name)
        or name in ("torch.Size", "torch.device")
        or (name == ORDERED_DICT and not arguments)
        or (name == ENCODE and type(first) is str and arguments[1:] == ("latin1",))
        or (SCRIPT_CALL.fullmatch(name) and isinstance(first, Result))
    ):
        return name
    raise Refused(f"a call of {name or 'a value'} with arguments that no checkpoint has")
