"""Modes 14 to 20: a header that is no sound JSON, or not that of a head."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.reliability.attempts import harmless, load, of_bytes, of_folder, of_forged, of_saving
from benchmarks.reliability.forge import forged, with_header
from benchmarks.reliability.modes import Case, Missed, Mode
from benchmarks.reliability.subjects import Subject, ensemble, file_of, plain, told
from dinoneck import PatchMeanHead, Task, save_head
from dinoneck.checkpoint.header import LISTING

Rows = Callable[[list[Any]], object]


def meta_text(old: str, new: str, subject: Subject = plain) -> Callable[[], bytes]:
    """A file whose metadata is spelled otherwise in one place; its digest cannot matter, the JSON comes first."""

    def content() -> bytes:
        raw = file_of(subject)
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        inner = header["__metadata__"]["dinoneck"]
        if old not in inner:
            raise Missed(f"the metadata does not hold {old}")
        header["__metadata__"]["dinoneck"] = inner.replace(old, new, 1)
        return with_header(json.dumps(header, separators=(",", ":"), ensure_ascii=False), raw[8 + size :])

    return content


def outer_text(old: str, new: str, subject: Subject = plain) -> Callable[[], bytes]:
    """A file whose header is spelled otherwise in one place."""

    def content() -> bytes:
        raw = file_of(subject)
        size = int.from_bytes(raw[:8], "little")
        text = raw[8 : 8 + size].decode().rstrip()
        if old not in text:
            raise Missed(f"the header does not hold {old}")
        return with_header(text.replace(old, new, 1), raw[8 + size :])

    return content


def in_meta(name: str, old: str, new: str, message: str = "", subject: Subject = plain) -> Case:
    """Another spelling inside the metadata is refused."""
    return of_bytes(name, "json", meta_text(old, new, subject), message)


def in_header(name: str, old: str, new: str, message: str = "", subject: Subject = plain) -> Case:
    """Another spelling of the header is refused."""
    return of_bytes(name, "json", outer_text(old, new, subject), message)


def in_listing(name: str, old: bytes, new: bytes, message: str = "") -> Case:
    """Another spelling of an ensemble's list is refused."""

    def change(folder: Path) -> None:
        raw = (folder / LISTING).read_bytes()
        if old not in raw:
            raise Missed(f"{LISTING} does not hold {old!r}")
        (folder / LISTING).write_bytes(raw.replace(old, new, 1))

    return of_folder(f"{LISTING}: {name}", "json", change, message)


def rows(name: str, change: Rows, message: str) -> Case:
    """The head's own list of tensors is changed; the digest is right."""
    return of_forged(name, "tensors", plain, lambda meta, state: change(meta["tensors"]), message)


FIRST_ROW = '"mlps.0.hidden.bias":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
BOTH_ROWS = f'{FIRST_ROW},"mlps.0.hidden.weight"'


def twice() -> Iterator[Mode]:
    """Keys that stand twice."""
    yield Mode(14, "a tensor's name twice", (
        in_header("the same row", FIRST_ROW, f"{FIRST_ROW},{FIRST_ROW}", "a key stands twice"),
        in_header("another row", FIRST_ROW, FIRST_ROW + "," + FIRST_ROW.replace("[0,16]", "[16,32]"), "stands twice"),
        in_header("spelled with an escape", FIRST_ROW, FIRST_ROW + "," + FIRST_ROW.replace("bias", "bia\\u0073"),
                  "stands twice"),
        in_header("a key inside its row", '"dtype":"F32"', '"dtype":"F32","dtype":"F32"', "stands twice"),
        rows("in the head's own list", lambda listing: listing.append(listing[-1]), "one stands twice"),
        rows("with another shape", lambda listing: listing.insert(1, [listing[0][0], "F32", [5]]), "one stands twice"),
        rows("out of order", lambda listing: listing.reverse(), "not in order"),
        of_forged("in another Unicode form", "tensors", plain, two_forms, "holds"),
    ))  # fmt: skip
    yield Mode(15, "a metadata key twice", (
        in_header("__metadata__", '{"__metadata__"', '{"__metadata__":{"dinoneck":"{}"},"__metadata__"',
                  "stands twice"),
        in_header("__metadata__ at the end", FIRST_ROW, f'"__metadata__":{{"dinoneck":"{{}}"}},{FIRST_ROW}', "twice"),
        in_header("dinoneck", '{"dinoneck":', '{"dinoneck":"{}","dinoneck":', "stands twice"),
        in_meta("head_type", '"head_type":', '"head_type":"fpn","head_type":', "stands twice"),
        in_meta("digest", '"digest":', '"digest":"sha256:0","digest":', "stands twice"),
        in_meta("inside the configuration", '"embed_dim":4', '"embed_dim":4,"embed_dim":8', "stands twice"),
        in_meta("with an escape", '"schema":2', '"schem\\u0061":2,"schema":2', "stands twice"),
        in_meta("in a member of an ensemble", '"embed_dim":4', '"embed_dim":4,"embed_dim":4', "twice", ensemble),
        in_listing("weight", b'"weight":1.0', b'"weight":1.0,"weight":2.0', "stands twice"),
    ))  # fmt: skip


def two_forms(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Two names that look alike: one composed, one decomposed."""
    for name in ("mlps.0.hidden.e\u0301", "mlps.0.hidden.\u00e9"):
        meta["tensors"].append([name, "F32", [1]])
        state[name] = torch.zeros(1)
    meta["tensors"].sort()


def noted(text: bytes) -> Callable[[], bytes]:
    """A header whose note holds these bytes."""

    def content() -> bytes:
        raw = file_of(told)
        size = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + size].rstrip().replace(b"spring", text, 1)
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + raw[8 + size :]

    return content


def recoded(encoding: str) -> Callable[[], bytes]:
    """The whole header in another encoding."""

    def content() -> bytes:
        raw = file_of(plain)
        size = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + size].decode().encode(encoding)
        return len(header).to_bytes(8, "little") + header + raw[8 + size :]

    return content


def saved(**facts: Any) -> Callable[[Path], None]:
    """Save a head with these facts."""
    return lambda path: save_head(path, PatchMeanHead(4, [Task("a")], hidden_dim=2), **facts)


def encodings() -> Iterator[Mode]:
    """Text that is none."""
    wrong = {
        "a byte that begins nothing": b"\xff", "a lone continuation": b"\x80", "cut in two": b"\xc3",
        "overlong: / in two bytes": b"\xc0\xaf", "overlong: NUL in two bytes": b"\xc0\x80",
        "beyond Unicode": b"\xf4\x90\x80\x80", "Latin-1": "größe".encode("latin-1"),
    }  # fmt: skip
    yield Mode(16, "invalid UTF-8", (
        *(of_bytes(name, "json", noted(text), "no sound JSON") for name, text in wrong.items()),
        *(of_bytes(f"the header in {code}", "json", recoded(code)) for code in ("utf-16", "utf-16-be", "utf-32",
                                                                                "utf-8-sig")),
        of_bytes("noise only", "json", (100).to_bytes(8, "little") + b"\xff" * 100, "no sound JSON"),
        in_listing("a byte that begins nothing", b'"mine"', b'"\xff"', "no sound JSON"),
    ))  # fmt: skip
    yield Mode(17, "a lone surrogate", (
        of_bytes("its three bytes", "json", noted(b"\xed\xa0\x80"), "no sound JSON"),
        of_bytes("a pair in six bytes", "json", noted(b"\xed\xa0\xbd\xed\xb8\x80"), "no sound JSON"),
        in_meta("escaped in the metadata", '"note":"spring"', '"note":"\\ud800"', "surrogates", told),
        in_meta("the second half", '"note":"spring"', '"note":"\\udc00x"', "surrogates", told),
        in_meta("in a key", '"note":', '"\\ud800":', "surrogates", told),
        in_meta("a pair, escaped: a second spelling", '"note":"spring"', '"note":"\\ud83d\\ude00"', "canonically",
                told),
        in_header("in a tensor's name", '"mlps.0.hidden.bias"', '"mlps.0.hidden.\\ud800"', "surrogates"),
        in_listing("in a record", b'"mine"', b'"\\ud800"', "surrogates"),
        of_saving("saving it in extra", "write", saved(note="\ud800"), "extra"),
        of_saving("saving it in the licence", "schema", saved(license="\ud800"), "SPDX"),
        of_saving("saving it in training", "write", saved(training={"data": {"name": "\ud800"}}), "training"),
        of_saving("saving it in the backbone's name", "write", saved(backbone={"name": "\ud800"}), "backbone"),
    ))  # fmt: skip


def deep(depth: int, kind: str = "list") -> Any:
    """A value nested so deep."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def nesting() -> Mode:
    """Deeper than any head needs: lists, objects, closed and not."""
    hundred_thousand, note = 100_000, '"note":"spring"'

    def inside(text: str, message: str = "nested deeper") -> Case:
        return in_meta(f"in extra: {text[:2]} {text.count(text[0])} times", note, f'"note":{text}', message, told)

    return Mode(18, "JSON nested 10^5 deep", (
        of_bytes("lists, not closed", "json", lambda: with_header("[" * hundred_thousand), "nested deeper"),
        of_bytes("lists", "json", lambda: with_header("[" * hundred_thousand + "]" * hundred_thousand), "nested"),
        of_bytes("objects", "json", lambda: with_header('{"a":' * hundred_thousand + "0" + "}" * hundred_thousand)),
        of_bytes("in the metadata", "json", lambda: with_header(
            '{"__metadata__":{"dinoneck":"' + "[" * hundred_thousand + '"}}'), "nested deeper"),
        inside("[" * hundred_thousand + "]" * hundred_thousand),
        inside("[" * 31 + "]" * 31),
        inside('{"a":' * 31 + "0" + "}" * 31),
        inside("[" * 40, "nested deeper"),
        harmless("brackets inside a text", told, lambda: forged(told(), lambda meta, state: None)),
        harmless("as deep as allowed", told, lambda: forged(told(), put_note(deep(29)))),
        harmless("a text of brackets", told, lambda: forged(told(), put_note("[{" * 5000))),
        in_listing("lists", b'"mine"', b"[" * hundred_thousand, "nested deeper"),
        of_saving("saving it in extra: 100 deep", "write", saved(note=deep(100)), "extra"),
        of_saving("saving it in extra: 10^5 deep", "write", saved(note=deep(hundred_thousand)), "extra"),
        of_saving("saving it in training", "write", saved(training=deep(hundred_thousand, "object")), "training"),
    ))  # fmt: skip


def put_note(value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """Another note in extra."""
    return lambda meta, state: meta["extra"].update(note=value)


def numbers() -> Mode:
    """Spellings of numbers that JSON has not, or that no head needs."""
    wrong = {
        "NaN": "NaN is no JSON number", "Infinity": "Infinity is no JSON", "-Infinity": "Infinity is no JSON",
        "1e999": "no finite number", "-1e999": "no finite number", "1" * 21: "more than 20 digits",
        "9" * 5000: "more than 20 digits", "-" + "9" * 4301: "more than 20 digits", "1e400": "no finite number",
        "0x10": "no sound JSON", "1_000": "no sound JSON", "01": "no sound JSON", "+1": "no sound JSON",
        ".5": "no sound JSON", "1.": "no sound JSON", "nan": "no sound JSON", "-0": "canonically",
        "1E2": "canonically", "1.50": "canonically", "1e2": "canonically", "100000000000000000000000.0": "canonically",
    }  # fmt: skip
    return Mode(19, "1e999, NaN and other numbers", (
        *(in_meta(f"{text[:12]}, {len(text)} signs", '"seed":1', f'"seed":{text}', message, told)
          for text, message in wrong.items()),
        in_meta("NaN in the configuration", '"embed_dim":4', '"embed_dim":NaN', "no JSON number"),
        in_meta("NaN in a record of the backbone", "[0.5,0.5,0.5]", "[NaN,0.5,0.5]", "no JSON number", told),
        in_meta("1e999 as a metric", '"R2":0.5', '"R2":1e999', "no finite number", told),
        in_header("NaN as an offset", "[0,16]", "[NaN,16]", "no JSON number"),
        in_header("1e1 as an offset", "[0,16]", "[0,1.6e1]", "canonically"),
        in_listing("NaN as a weight", b'"weight":1.0', b'"weight":NaN', "no JSON number"),
        in_listing("1e999 as a weight", b'"weight":1.0', b'"weight":1e999', "no finite number"),
        in_listing("another spelling of a weight", b'"weight":1.0', b'"weight":1.00', "canonically"),
        of_saving("saving NaN in extra", "write", saved(note=float("nan")), "extra"),
        of_saving("saving infinity as a metric", "write", saved(training={"metrics": {"R2": float("inf")}}),
                  "training"),
    ))  # fmt: skip


def without_metadata() -> Mode:
    """Safetensors files that are no head files."""
    blocks = {
        "null": "null", "a list": "[]", "a text": '"x"', "a number": "3", "empty": "{}",
        "dinoneck is a number": '{"dinoneck":3}', "dinoneck is null": '{"dinoneck":null}',
        "dinoneck is an object": '{"dinoneck":{}}', "dinoneck is a list": '{"dinoneck":["{}"]}',
        "another key": '{"other":"{}"}', "a key beside it": '{"dinoneck":"{}","format":"pt"}',
        "another spelling of the key": '{"Dinoneck":"{}"}',
    }  # fmt: skip
    plain_weights = "plain weights, not a head file"

    def other_library(metadata: dict[str, str] | None) -> Callable[[], bytes]:
        return lambda: safetensors.torch.save({"a": torch.zeros(1)}, metadata)

    return Mode(20, "`__metadata__` missing or no text", (
        *(of_bytes(name, "json", with_header(f'{{"__metadata__":{block}}}'), plain_weights)
          for name, block in blocks.items()),
        of_bytes("no header entries at all", "json", with_header("{}"), plain_weights),
        of_bytes("plain safetensors", "json", other_library(None), plain_weights),
        of_bytes("plain safetensors of another library", "json", other_library({"format": "pt"}), plain_weights),
        *(of_bytes(f"the header is {text}", "json", with_header(text)) for text in ("[]", "3", '"x"', "null", "true")),
        *(of_bytes(f"the metadata is {name}", "json", with_header(json.dumps({"__metadata__": {"dinoneck": text}})))
          for name, text in (("empty", ""), ("a list", "[]"), ("a number", "3"), ("no JSON", "x"), ("null", "null"))),
        of_bytes("the metadata is an empty object", "schema", with_header('{"__metadata__":{"dinoneck":"{}"}}')),
        Case("plain weights of this very head", "json", plain_state, plain_weights),
    ))  # fmt: skip


def plain_state(folder: Path) -> None:
    """The right tensors without a word about them."""
    load(folder / "h.safetensors", safetensors.torch.save(plain().state_dict))


MODES: list[Mode] = [*twice(), *encodings(), nesting(), numbers(), without_metadata()]
