"""What the bytes of an ONNX file say before a runtime opens it: metadata, operators, and where weights lie.

An ONNX file is a protobuf message. A field is a number and a value: a varint, four or eight bytes,
or bytes with their length, which may be a message again. The numbers below are those of
``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import NamedTuple

from dinoneck.errors import CheckpointError

STANDARD_DOMAINS = ("", "ai.onnx")
"""Domains of the operators that ONNX itself defines."""
MOST_METADATA_BYTES = 64 << 20
_MOST_DEPTH = 16  # of graphs inside of graphs
_MOST_VARINT_BYTES = 10
_TAG_END = 1 << 32  # protobuf reads 32 bits of a tag, so a longer one would be another field there

# kinds of values
_VARINT = 0
_EIGHT_BYTES = 1
_BYTES = 2
_FOUR_BYTES = 5

# fields of ModelProto
_GRAPH = 7
_METADATA = 14
_FUNCTIONS = 25
# of StringStringEntryProto
_KEY = 1
_VALUE = 2
# of GraphProto
_NODE = 1
_INITIALIZER = 5
_SPARSE_INITIALIZER = 15
# of NodeProto
_OPERATOR = 4
_ATTRIBUTE = 5
_DOMAIN = 7
# of AttributeProto: one tensor or graph, or several
_TENSORS_OF_ATTRIBUTE = (5, 10)
_GRAPHS_OF_ATTRIBUTE = (6, 11)
_SPARSE_TENSORS_OF_ATTRIBUTE = (22, 23)
# of SparseTensorProto: values and indices
_TENSORS_OF_SPARSE = (1, 2)
# of TensorProto
_EXTERNAL_DATA = 13
_LOCATION = b"location"


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: of the field.
        content: its bytes; None of a number.
    """

    number: int
    content: memoryview | None


@dataclass
class OnnxFacts:
    """What a file holds.

    Attributes:
        metadata: key -> text.
        operators: ``domain::name`` of those that ONNX does not define.
        data_files: where weights lie that are not in the file.
        has_functions: whether it defines operators itself.
    """

    metadata: dict[str, bytes] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)
    data_files: set[str] = field(default_factory=set)
    has_functions: bool = False


def read_facts(content: bytes, name: str) -> OnnxFacts:
    """Read what an ONNX file holds, without its weights.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        CheckpointError: if it is not an ONNX file, or its metadata are too long or repeat a key.
    """
    facts = OnnxFacts()
    num_graphs = 0
    num_bytes = 0
    try:
        for number, part in _fields(memoryview(content)):
            if part is None:
                continue
            if number == _GRAPH:
                num_graphs += 1
                _read_graph(part, facts, depth=0)
            elif number == _FUNCTIONS:
                facts.has_functions = True
            elif number == _METADATA:
                num_bytes += len(part)
                if num_bytes > MOST_METADATA_BYTES:
                    raise CheckpointError(
                        f"{name} has more than {MOST_METADATA_BYTES} bytes of metadata, which no "
                        "file of dinoneck has",
                        step="header",
                    )
                _read_metadata(part, facts, name)
    except ValueError as error:  # UnicodeDecodeError is one
        raise CheckpointError(
            f"{name} is not an ONNX file, or damaged: {error}; export it again", step="file"
        ) from None
    if num_graphs != 1:
        raise CheckpointError(
            f"{name} is not an ONNX file: it holds {num_graphs} graphs; export it again",
            step="file",
        )
    return facts


def check_safe(facts: OnnxFacts, name: str) -> None:
    """Reject a file that would make a runtime open other files, or run other operators than those of ONNX.

    Raises:
        CheckpointError: naming the file or the operator.
    """
    for location in sorted(facts.data_files):
        if _leaves_folder(location):
            raise CheckpointError(
                f"{name} names weights outside of its folder, {location!r}, which are not opened; "
                "files of dinoneck name none: export it again",
                step="tensors",
            )
        raise CheckpointError(
            f"{name} keeps weights in a second file, {location!r}, which is not opened: models "
            "above 2 GiB run as head file (.safetensors), or with --half",
            step="tensors",
        )
    if facts.has_functions or facts.operators:
        named = ", ".join(sorted(facts.operators)) or "functions of its own"
        raise CheckpointError(
            f"{name} holds {named}, which are no operators of ONNX; files of dinoneck hold none: "
            "export it again",
            step="tensors",
        )


def _leaves_folder(location: str) -> bool:
    """Whether a path is absolute, on any system, or climbs out of its folder."""
    is_absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    return is_absolute or ".." in PureWindowsPath(location).parts


def _read_metadata(entry: memoryview, facts: OnnxFacts, name: str) -> None:
    key = ""
    value = b""
    for number, part in _fields(entry):
        if part is not None and number == _KEY:
            key = bytes(part).decode("utf-8")
        elif part is not None and number == _VALUE:
            value = bytes(part)
    if key in facts.metadata:
        raise CheckpointError(
            f"{name} has the metadata {key!r} twice; export it again", step="header"
        )
    facts.metadata[key] = value


def _read_graph(graph: memoryview, facts: OnnxFacts, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError(f"graphs are nested deeper than {_MOST_DEPTH}")
    for number, part in _fields(graph):
        if part is None:
            continue
        if number == _NODE:
            _read_node(part, facts, depth)
        elif number == _INITIALIZER:
            _read_tensor(part, facts)
        elif number == _SPARSE_INITIALIZER:
            _read_sparse_tensor(part, facts)


def _read_node(node: memoryview, facts: OnnxFacts, depth: int) -> None:
    operator = ""
    domain = ""
    for number, part in _fields(node):
        if part is None:
            continue
        if number == _OPERATOR:
            operator = bytes(part).decode("utf-8")
        elif number == _DOMAIN:
            domain = bytes(part).decode("utf-8")
        elif number == _ATTRIBUTE:
            _read_attribute(part, facts, depth)
    if domain not in STANDARD_DOMAINS:
        facts.operators.add(f"{domain}::{operator}")


def _read_attribute(attribute: memoryview, facts: OnnxFacts, depth: int) -> None:
    for number, part in _fields(attribute):
        if part is None:
            continue
        if number in _GRAPHS_OF_ATTRIBUTE:
            _read_graph(part, facts, depth + 1)
        elif number in _TENSORS_OF_ATTRIBUTE:
            _read_tensor(part, facts)
        elif number in _SPARSE_TENSORS_OF_ATTRIBUTE:
            _read_sparse_tensor(part, facts)


def _read_sparse_tensor(tensor: memoryview, facts: OnnxFacts) -> None:
    for number, part in _fields(tensor):
        if part is not None and number in _TENSORS_OF_SPARSE:
            _read_tensor(part, facts)


def _read_tensor(tensor: memoryview, facts: OnnxFacts) -> None:
    has_entries = False
    has_location = False
    for number, part in _fields(tensor):
        if part is None or number != _EXTERNAL_DATA:
            continue
        has_entries = True
        key = b""
        value = b""
        for entry_number, entry_part in _fields(part):
            if entry_part is not None and entry_number == _KEY:
                key = bytes(entry_part)
            elif entry_part is not None and entry_number == _VALUE:
                value = bytes(entry_part)
        if key == _LOCATION:
            has_location = True
            facts.data_files.add(value.decode("utf-8"))
    if has_entries and not has_location:
        raise ValueError("weights lie outside of the file, and it does not state where")


def _fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message.

    Raises:
        ValueError: if it is no message.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag >= _TAG_END:
            raise ValueError("the number of a field has more than 29 bits")
        number = tag >> 3
        kind = tag & 7
        content = None
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _EIGHT_BYTES:
            position += 8
        elif kind == _FOUR_BYTES:
            position += 4
        elif kind == _BYTES:
            length, position = _varint(message, position)
            content = message[position : position + length]
            position += length
        else:
            raise ValueError(f"a value of the unknown kind {kind}")
        if number == 0 or position > len(message):
            raise ValueError("a value ends beyond its message")
        yield Field(number, content)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number that begins at a position, and the position after it."""
    number = 0
    for i in range(_MOST_VARINT_BYTES):
        if position + i >= len(message):
            raise ValueError("it ends within a number")
        byte = message[position + i]
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, position + i + 1
    raise ValueError("a number has more than 64 bits")
