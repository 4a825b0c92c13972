"""What a pickle holds, without unpickling it: nothing that the file names is imported or called.

The opcodes are told apart by the standard library's `pickletools`; those that plain values need are
carried out here. A name of a class or function is looked up in a table of the caller, and one that
is not there is refused.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, cast

from cosurfgs_jax.errors import InputError


class Names(NamedTuple):
    """What the names in a pickle mean ("module.name" -> meaning), and where what lies outside of
    the pickle is.
    """

    functions: Mapping[str, Callable[..., Any]]
    constants: Mapping[str, Any]
    outside: Callable[[Any], Any]


class _Function(NamedTuple):
    """A function of the table, on the stack."""

    call: Callable[..., Any]


_IGNORED = ("PROTO", "FRAME", "STOP")
_LITERALS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}
_NUMBERS_AND_TEXTS = (
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINSTRING",  # of Python 2, which wrote many a network's weights
    "SHORT_BINSTRING",
)
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack of a pickle and its memo."""

    def __init__(self, names: Names, source: str):
        self._names = names
        self._source = source
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._actions: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "BINGET": lambda number: self._stack.append(self._memo[number]),
            "LONG_BINGET": lambda number: self._stack.append(self._memo[number]),
            "TUPLE": lambda _: self._stack.append(tuple(self._since_mark())),
            "LIST": lambda _: self._stack.append(self._since_mark()),
            "GLOBAL": lambda name: self._push_named(name.replace(" ", ".", 1)),
            "STACK_GLOBAL": lambda _: self._push_named(".".join(map(str, self._pop(2)))),
            "BINPERSID": lambda _: self._stack.append(self._names.outside(*self._pop(1))),
            "REDUCE": self._call,
            "BUILD": self._drop_state,
            "APPEND": lambda _: self._append(self._pop(1)),
            "APPENDS": lambda _: self._append(self._since_mark()),
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._since_mark()),
        }

    def run(self, stream: io.BufferedIOBase) -> Any:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            name = opcode.name
            if name in self._actions:
                self._actions[name](argument)
            elif name in _LITERALS:
                self._stack.append(_LITERALS[name])
            elif name in _NUMBERS_AND_TEXTS:
                self._stack.append(argument)
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name in _SHORT_TUPLES:
                self._stack.append(tuple(self._pop(_SHORT_TUPLES[name])))
            elif name not in _IGNORED:
                self._refuse(f"the pickle opcode {name}")
        (value,) = self._stack
        return value

    def _refuse(self, got: str) -> None:
        raise InputError(
            f"{self._source}: expected tensors, numbers, texts, lists and dictionaries alone, got "
            f"{got[:100]!r}; nothing in the file was run: save it again with plain values"
        )

    def _pop(self, count: int) -> list[Any]:
        lowest = self._marks[-1] if self._marks else 0
        if len(self._stack) - count < lowest:
            raise ValueError("the stack of the pickle is empty")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _push_named(self, name: str) -> None:
        if name in self._names.constants:
            self._stack.append(self._names.constants[name])
        elif name in self._names.functions:
            self._stack.append(_Function(self._names.functions[name]))
        else:
            self._refuse(name)

    def _call(self, _) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise ValueError("something else than a function is called")
        self._stack.append(function.call(*arguments))

    def _drop_state(self, _) -> None:
        """The attributes of a dictionary, which the state of a network has, are of no use here."""
        self._pop(1)
        if not isinstance(self._stack[-1], dict):
            raise ValueError("something else than a dictionary has attributes")

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("something else than a list is appended to")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError("something else than a dictionary is filled")
        target.update(zip(values[::2], values[1::2], strict=True))


def read_pickle(stream: io.BufferedIOBase, names: Names, source: str) -> Any:
    """The value of the pickle that begins where the stream is; the stream is left behind it.

    Args:
        stream: binary, with seek.
        names: what names in it mean.
        source: the file, for messages.
    Returns:
        Dictionaries, lists, tuples, numbers, texts, None, and what `names` gives.
    Raises:
        InputError: a name that is not in `names`, or an opcode that plain values do not need; the
            message has it.
        Exception: any other, where the pickle is damaged.
    """
    return _Machine(names, source).run(stream)


def skip_pickle(stream: io.BufferedIOBase) -> None:
    """Moves the stream behind the pickle that begins there."""
    for _ in pickletools.genops(cast(IO[bytes], stream)):
        pass
