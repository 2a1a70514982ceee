"""A pickle machine without hands: reads the opcodes, builds plain values, runs nothing.

Python's own unpickler imports and calls what a file names; an allow-list on top of it must foresee
every way round. This machine has no way to import, call or set an attribute: a name becomes a
Global, a call is handed to Rules, which knows a few names and refuses the others. It pays for every
object before it makes it (Account), keeps bytes as views of the file, and does not recurse.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, Protocol

from sid_ray.tensor_files.inert import Account, Global, Inert, RefusedFileError

MAX_LINE, MAX_NAME = 4096, 512
MAX_INTEGER_BYTES = 1024
OPCODE_COST, ENTRY_COST, OBJECT_COST = 32, 128, 256  # bytes, from above
MAX_KEY = 1 << 31


class Rules(Protocol):
    """What names, calls and states become. Every method raises RefusedError for the unknown."""

    def name(self, module: str, name: str) -> Any: ...

    def call(self, function: Any, arguments: tuple, named: dict | None = None) -> Any: ...

    def set_state(self, target: Any, state: Any) -> None: ...

    def persistent(self, key: Any) -> Any: ...


def checked_key(key: Any) -> Any:
    """A dict key or set member. Only short, cheap to hash ones: nested tuples take for ever."""
    kind = type(key)
    if kind is str or kind is bool or key is None:
        return key
    if kind is Global:  # a class: callbacks of a training state are kept under theirs
        return key.name
    if kind is int and -MAX_KEY < key < MAX_KEY:
        return key
    if kind is tuple and all(type(part) in (str, bool, int) for part in key):
        return key
    raise RefusedFileError(
        f"it has a dict key of type {kind.__name__}; text or numbers are expected"
    )


class PickleMachine:
    """Reads one pickle from ``data`` at ``position``; afterwards ``position`` is behind it."""

    def __init__(self, data: memoryview, position: int, rules: Rules, account: Account):
        self.data, self.position = data, position
        self.rules, self.account = rules, account
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The pickled value. Raises RefusedError for a file that is damaged or asks too much."""
        charge = self.account.charge
        while True:
            charge(OPCODE_COST)
            opcode = self.take(1)[0]
            if opcode == pickle.STOP[0]:
                value = self.pop()
                if self.stack or self.below:
                    raise RefusedFileError("its pickle ends with values left over: it is damaged")
                return value
            handler = HANDLERS.get(opcode)
            if handler is None:
                raise RefusedFileError(
                    f"byte {opcode:#04x} is no pickle instruction that is read here"
                )
            handler(self)

    # The file

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            left = len(self.data) - self.position
            raise RefusedFileError(f"it is cut or damaged: {count} bytes announced, {left} left")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        window = bytes(self.data[self.position : self.position + MAX_LINE])
        length = window.find(b"\n")
        if length < 0:
            raise RefusedFileError(f"it is cut or damaged: no end of line within {MAX_LINE} bytes")
        self.position += length + 1
        return self.decode(window[:length])

    def decode(self, text: memoryview | bytes) -> str:
        self.account.charge(4 * len(text))
        try:
            return str(text, "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise RefusedFileError("it is damaged: a text is not UTF-8") from None

    # The stack

    def push(self, value: Any, cost: int = 0) -> None:
        if cost:
            self.account.charge(cost)
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise RefusedFileError("it is damaged: its pickle takes a value that is not there")
        return self.stack.pop()

    def top(self, kinds: type | tuple[type, ...]) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kinds):
            raise RefusedFileError(
                "it is damaged: its pickle fills something that cannot be filled"
            )
        return self.stack[-1]

    def mark(self) -> None:
        self.account.charge(ENTRY_COST)
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise RefusedFileError("it is damaged: its pickle ends a list that was not begun")
        items, self.stack = self.stack, self.below.pop()
        self.account.charge(16 * len(items))
        return items

    # The memo

    def remember(self, index: int) -> None:
        if not self.stack or index < 0:
            raise RefusedFileError("it is damaged: its pickle remembers a value that is not there")
        self.account.charge(ENTRY_COST)
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise RefusedFileError(f"it is damaged: its pickle recalls value {index}, never stored")
        self.stack.append(self.memo[index])

    # Values

    def push_integer(self, length: int) -> None:
        if not 0 <= length <= MAX_INTEGER_BYTES:
            raise RefusedFileError(f"it announces a number of {length} bytes; it is damaged")
        self.push(int.from_bytes(self.take(length), "little", signed=True), ENTRY_COST)

    def push_text(self, length: int) -> None:
        self.push(self.decode(self.take(length)), ENTRY_COST)

    def push_bytes(self, length: int) -> None:
        self.push(self.take(length), OBJECT_COST)

    def push_decimal(self) -> None:
        text = self.line().removesuffix("L")
        if len(text) > 1000 or not re.fullmatch("-?[0-9]+", text):
            raise RefusedFileError("it is damaged: a number is not one")
        known = {"00": False, "01": True}
        self.push(known[text] if text in known else int(text), ENTRY_COST)

    def push_float(self) -> None:
        try:
            self.push(float(self.line()), ENTRY_COST)
        except ValueError:
            raise RefusedFileError("it is damaged: a number is not one") from None

    # Containers

    def make_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)), ENTRY_COST)

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.push({}, OBJECT_COST)
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise RefusedFileError("it is damaged: a dict has a key without a value")
        target = self.top((dict, Inert))
        self.account.charge(ENTRY_COST * len(items))
        into = target.items if isinstance(target, Inert) else target
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[checked_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.top((list, Inert))
        self.account.charge(16 * len(items))
        (target.elements if isinstance(target, Inert) else target).extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.top(set)
        self.account.charge(ENTRY_COST * len(items))
        target.update(checked_key(item) for item in items)

    def make_frozenset(self) -> None:
        items = self.pop_mark()
        self.push(
            frozenset(checked_key(item) for item in items), OBJECT_COST + ENTRY_COST * len(items)
        )

    # Names, calls, states: everything goes to the rules

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise RefusedFileError("it is damaged: it imports something that is not a name")
        self.push_name(module, name)

    def push_name(self, module: str, name: str) -> None:
        if len(module) + len(name) > MAX_NAME:
            raise RefusedFileError(f"it imports a name of {len(module) + len(name)} characters")
        self.push(self.rules.name(module, name), OBJECT_COST + 2 * MAX_NAME)

    def call(self, function: Any, arguments: Any, named: Any = None) -> None:
        if not isinstance(arguments, tuple) or not isinstance(named, dict | None):
            raise RefusedFileError("it is damaged: a call has no list of arguments")
        for argument in arguments:  # one remembered value may be copied by many calls
            if isinstance(argument, list | tuple | dict):
                self.account.charge(ENTRY_COST * len(argument))
            elif isinstance(argument, str):
                self.account.charge(2 * len(argument))
        self.push(self.rules.call(function, arguments, named), OBJECT_COST)

    def reduce(self) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def new_object_with_names(self) -> None:
        named, arguments = self.pop(), self.pop()
        self.call(self.pop(), arguments, named)

    def instance(self) -> None:
        module, name = self.line(), self.line()
        arguments = self.pop_mark()
        self.push_name(module, name)
        self.call(self.pop(), tuple(arguments))

    def old_object(self) -> None:
        items = self.pop_mark()
        if not items:
            raise RefusedFileError("it is damaged: it makes an object of no class")
        self.call(items[0], tuple(items[1:]))

    def build(self) -> None:
        state = self.pop()
        if not self.stack:
            raise RefusedFileError("it is damaged: its pickle sets the state of nothing")
        self.account.charge(OBJECT_COST)
        self.rules.set_state(self.stack[-1], state)

    def frame(self) -> None:
        length = self.number("<Q")
        if length > len(self.data) - self.position:
            raise RefusedFileError(
                f"it is cut or damaged: a frame of {length} bytes goes past its end"
            )


Handler = Callable[[PickleMachine], Any]

NAMED_HANDLERS: dict[str, Handler] = {
    "PROTO": lambda m: m.take(1),
    "FRAME": PickleMachine.frame,
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "NEWFALSE": lambda m: m.push(False),
    "BININT": lambda m: m.push(m.number("<i")),
    "BININT1": lambda m: m.push(m.number("B")),
    "BININT2": lambda m: m.push(m.number("<H")),
    "INT": PickleMachine.push_decimal,
    "LONG": PickleMachine.push_decimal,
    "LONG1": lambda m: m.push_integer(m.number("B")),
    "LONG4": lambda m: m.push_integer(m.number("<i")),
    "FLOAT": PickleMachine.push_float,
    "BINFLOAT": lambda m: m.push(m.number(">d")),
    "STRING": lambda m: m.push(m.line().strip("'\""), ENTRY_COST),
    "UNICODE": lambda m: m.push(m.line(), ENTRY_COST),
    "SHORT_BINUNICODE": lambda m: m.push_text(m.number("B")),
    "BINUNICODE": lambda m: m.push_text(m.number("<I")),
    "BINUNICODE8": lambda m: m.push_text(m.number("<Q")),
    "SHORT_BINSTRING": lambda m: m.push_bytes(m.number("B")),
    "BINSTRING": lambda m: m.push_bytes(m.number("<I")),
    "SHORT_BINBYTES": lambda m: m.push_bytes(m.number("B")),
    "BINBYTES": lambda m: m.push_bytes(m.number("<I")),
    "BINBYTES8": lambda m: m.push_bytes(m.number("<Q")),
    "BYTEARRAY8": lambda m: m.push_bytes(m.number("<Q")),
    "EMPTY_TUPLE": lambda m: m.push(()),
    "TUPLE": lambda m: m.push(tuple(m.pop_mark()), ENTRY_COST),
    "TUPLE1": lambda m: m.make_tuple(1),
    "TUPLE2": lambda m: m.make_tuple(2),
    "TUPLE3": lambda m: m.make_tuple(3),
    "EMPTY_LIST": lambda m: m.push([], ENTRY_COST),
    "LIST": lambda m: m.push(m.pop_mark(), ENTRY_COST),
    "APPEND": lambda m: m.append([m.pop()]),
    "APPENDS": lambda m: m.append(m.pop_mark()),
    "EMPTY_DICT": lambda m: m.push({}, OBJECT_COST),
    "DICT": PickleMachine.make_dict,
    "SETITEM": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    "EMPTY_SET": lambda m: m.push(set(), OBJECT_COST),
    "ADDITEMS": lambda m: m.add(m.pop_mark()),
    "FROZENSET": PickleMachine.make_frozenset,
    "MARK": PickleMachine.mark,
    "POP": lambda m: m.pop() if m.stack else m.pop_mark(),
    "POP_MARK": PickleMachine.pop_mark,
    "DUP": lambda m: m.push(m.top(object)),
    "PUT": lambda m: m.remember(decimal_index(m)),
    "BINPUT": lambda m: m.remember(m.number("B")),
    "LONG_BINPUT": lambda m: m.remember(m.number("<I")),
    "MEMOIZE": lambda m: m.remember(len(m.memo)),
    "GET": lambda m: m.recall(decimal_index(m)),
    "BINGET": lambda m: m.recall(m.number("B")),
    "LONG_BINGET": lambda m: m.recall(m.number("<I")),
    "GLOBAL": lambda m: m.push_name(m.line(), m.line()),
    "STACK_GLOBAL": PickleMachine.stack_global,
    "REDUCE": PickleMachine.reduce,
    "NEWOBJ": PickleMachine.reduce,
    "NEWOBJ_EX": PickleMachine.new_object_with_names,
    "INST": PickleMachine.instance,
    "OBJ": PickleMachine.old_object,
    "BUILD": PickleMachine.build,
    "PERSID": lambda m: m.push(m.rules.persistent(m.line()), ENTRY_COST),
    "BINPERSID": lambda m: m.push(m.rules.persistent(m.pop()), ENTRY_COST),
}
HANDLERS: dict[int, Handler] = {
    getattr(pickle, name)[0]: handler for name, handler in NAMED_HANDLERS.items()
}


def decimal_index(machine: PickleMachine) -> int:
    """The memo index of the text instructions."""
    text = machine.line()
    if not re.fullmatch("[0-9]{1,10}", text):
        raise RefusedFileError("it is damaged: a memo index is not a number")
    return int(text)
