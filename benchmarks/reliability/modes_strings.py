"""Modes 38 and 39: texts that would be paths or imports if anybody took them for such."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.reliability.attempts import of_folder
from benchmarks.reliability.changes import TASK, member_type, neck_type, put
from benchmarks.reliability.forge import Change, forged, relisted
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.subjects import Subject, ensemble, ensemble_folder, lora, plain, pyramid, small, told
from benchmarks.reliability.watch import listing, watched
from dinoneck import HeadCheckpoint, PatchMeanHead, Task
from dinoneck.checkpoint import EnsembleFolder, Member, save_ensemble
from dinoneck.checkpoint.header import LISTING

MARK = "dinoneck-mark"
TEXTS = {
    "traversal": f"../../{MARK}",
    "absolute": f"/tmp/{MARK}",
    "Windows": f"C:\\{MARK}",
    "home": f"~/{MARK}",
    "URL": f"file:///{MARK}",
    "NUL": f"a\0{MARK}",
    "newline": f"a\n{MARK}",
    "terminal": f"\x1b[31m{MARK}",
    "right to left": f"a\u202e{MARK}",
}
UNPRINTED = ("NUL", "newline", "terminal", "right to left")
"""Signs that no line of text holds."""
LAZY = frozenset({"this", "antigravity", "turtle", "idlelib"})
"""Modules of Python that nothing imports by itself."""


def quiet(
    name: str,
    outcome: str,
    subject: Subject,
    change: Change,
    *,
    digest: bool = True,
) -> Case:
    """A forged head does nothing to the outside while it is read and built."""

    def run(folder: Path) -> None:
        path = folder / "h.safetensors"
        path.write_bytes(forged(subject(), change, digest=digest))
        before = listing(folder)
        try:
            with watched(MARK, LAZY):
                HeadCheckpoint.load(path).build()
        except OSError as error:
            if any(not sign.isprintable() for sign in str(error).replace("\n", "")):
                raise Missed(f"{name}: the message holds signs that steer a terminal") from error
            raise
        finally:
            if listing(folder) != before:
                raise Missed(f"{name}: the folder changed: {sorted(listing(folder))}")

    return Case(name, outcome, run)


def everywhere(
    place: tuple[Any, ...], step: str, unprinted: str | None = None, subject: Subject = plain
) -> Iterator[Case]:
    """Every text in one place; ``unprinted`` is what comes of those with signs that no line of text holds."""
    owner = "" if subject is plain else f"{subject.__name__}: "
    for kind, text in TEXTS.items():
        outcome = unprinted if unprinted is not None and kind in UNPRINTED else step
        name = f"{owner}{'.'.join(map(str, place))}: {kind}"
        yield quiet(name, outcome, subject, put(place, text), digest=place != ("digest",))


def as_key(
    place: tuple[Any, ...], step: str, value: Any, unprinted: str | None = None, subject: Subject = plain
) -> Iterator[Case]:
    """Every text as a key."""
    for kind, text in TEXTS.items():
        outcome = unprinted if unprinted is not None and kind in UNPRINTED else step
        where = ".".join(map(str, place)) or "the metadata"
        yield quiet(f"a key of {where}: {kind}", outcome, subject, put((*place, text), value))


def tensor_name(text: str, *, more: bool) -> Change:
    """One more tensor, or another name for one."""

    def change(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
        rows, last = meta["tensors"], meta["tensors"][-1]
        state[text] = state[last[0]].clone()
        if not more:
            del state[rows.pop()[0]]
        rows.append([text, *last[1:]])
        rows.sort(key=lambda row: str(row[0]))

    return change


def names_of_tensors() -> Iterator[Case]:
    """Texts as names of tensors, the head's and LoRA's."""
    for kind, text in TEXTS.items():
        yield quiet(f"a tensor more: {kind}", "tensors", plain, tensor_name(text, more=True))
        yield quiet(f"a tensor renamed: {kind}", "tensors", plain, tensor_name(text, more=False))
        yield quiet(f"a LoRA tensor more: {kind}", "tensors", lora, tensor_name(f"adapter/{text}.lora_A", more=True))


def in_lists() -> Iterator[Case]:
    """Texts in an ensemble's list."""
    for key in ("file", "output", "digest"):
        for kind, text in TEXTS.items():

            def change(folder: Path, key: str = key, text: str = text) -> None:
                relisted(folder, lambda x: x["members"][0].update({key: text}))

            yield watched_folder(f"{LISTING}: {key}: {kind}", "schema", change)
    for kind, text in TEXTS.items():
        yield watched_folder(
            f"{LISTING}: a backbone's name: {kind}",
            "pairing",
            lambda folder, text=text: relisted(folder, lambda x: x["backbone"].update(name=text)),
        )


def watched_folder(name: str, step: str, change: Any) -> Case:
    """Nothing outside is touched while an ensemble's folder is refused."""

    def run(folder: Path) -> None:
        change(place := ensemble_folder(folder / "e"))
        before = listing(folder)
        try:
            with watched(MARK, LAZY):
                EnsembleFolder.load(place)
        finally:
            if listing(folder) != before:
                raise Missed(f"{name}: the folder changed: {sorted(listing(folder))}")

    return Case(name, step, run)


def outputs_when_saved() -> Iterator[Case]:
    """An ensemble's files are named after outputs: what would leave the folder is not written."""
    for kind, text in TEXTS.items():

        def run(folder: Path, text: str = text) -> None:
            tasks = [Task("a"), Task("b")]
            member = Member(HeadCheckpoint.from_module(PatchMeanHead(4, tasks, hidden_dim=2)), text, 0)
            try:
                save_ensemble(folder / "e", [member])
            finally:
                if listing(folder):
                    raise Missed(f"something was written: {sorted(listing(folder))}")

        yield Case(f"saving an ensemble's output: {kind}", "schema", run)


def paths() -> Mode:
    """Every text of a head file."""
    records = ("name", "family", "source", "license", "weights_sha256")
    return Mode(38, "traversal, absolute paths and NUL in any text", (
        *everywhere(("format",), "schema"),
        *everywhere(("head_type",), "registry"),
        *everywhere(("digest",), "digest"),
        *everywhere(("created_by", "dinoneck"), HARMLESS, "schema"),
        *everywhere(("created_by", "torch"), HARMLESS, "schema"),
        *everywhere((*TASK, "name"), "config", "schema"),
        *everywhere((*TASK, "kind"), "config", "schema"),
        *everywhere((*TASK, "unit"), HARMLESS, "schema", told),
        *everywhere((*TASK, "labels", 0), HARMLESS, "schema", told),
        *everywhere((*TASK, "aggregate"), "config"),
        *everywhere((*TASK, "$"), "config"),
        *everywhere(("config", "activation"), "config", None, small),
        *everywhere(("config", "neck", "type"), "config", None, pyramid),
        *everywhere(("config", "members", 0, "type"), "config", None, ensemble),
        *everywhere(("config", "reduce"), "config", None, ensemble),
        *(case for key in records for case in everywhere(("backbone", key), HARMLESS, "schema", told)),
        *(case for key in ("kind", "repo", "revision")
          for case in everywhere(("backbone", "weights", key), HARMLESS, "schema", told)),
        *everywhere(("backbone", "dtype"), HARMLESS, "schema", lora),
        *everywhere(("backbone", "pos_embed"), HARMLESS, "schema", lora),
        *everywhere(("backbone", "adapter", "sha256"), HARMLESS, "schema", lora),
        *everywhere(("backbone", "adapter", "targets"), "schema", None, lora),
        *(case for key in ("fit", "policy", "interpolation")
          for case in everywhere(("inputs", key), "config", "schema", told)),
        *everywhere(("training", "data", "name"), HARMLESS, "schema", told),
        *everywhere(("training", "data", "revision"), HARMLESS, "schema", told),
        *everywhere(("license",), "schema", None, told),
        *everywhere(("tta", "ops"), "schema", None, told),
        *everywhere(("extra", "note"), HARMLESS, None, told),
        *everywhere(("tensors", 0, 1), "tensors"),
        *as_key((), "schema", "x"),
        *as_key(("config",), "config", "x"),
        *as_key(("versions",), "schema", 1),
        *as_key(("extra",), HARMLESS, "x"),
        *as_key(("training", "metrics"), HARMLESS, 1.0, "schema", told),
        *as_key(("backbone",), HARMLESS, "x", None, told),
        *names_of_tensors(),
        *in_lists(),
        *outputs_when_saved(),
    ))  # fmt: skip


DOTTED = (
    "os.system", "builtins.eval", "torch.load", "this.s", "antigravity.fly", "turtle.done",
    "dinoneck.patch_mean",
)  # fmt: skip
SPELLED = (
    "torch.nn.Linear", "subprocess.Popen", "dinoneck.heads.patch_mean.PatchMeanHead",
    "dinoneck.heads.patch_mean:PatchMeanHead", "__main__.X",
    "..patch_mean", ".patch_mean", "patch_mean.", "os:system", "os.system()", "os/system", "__import__('os')",
)  # fmt: skip


def imports() -> Mode:
    """Import paths in the place of registered names."""
    return Mode(39, "an import path as head_type", (
        *(quiet(f"head_type {name}", "registry", plain, put(("head_type",), name)) for name in (*DOTTED, *SPELLED)),
        *(quiet(f"versions: {name}", "config", plain, put(("versions", name), 1)) for name in DOTTED),
        *(quiet(f"versions: {name}", "schema", plain, put(("versions", name), 1)) for name in SPELLED),
        *(quiet(f"a member of an ensemble: {name}", "config", ensemble, member_type(name)) for name in DOTTED),
        *(quiet(f"a neck: {name}", "config", pyramid, neck_type(name)) for name in DOTTED),
        *(quiet(f"a task's class: {name}", "config", plain, put((*TASK, "$"), name)) for name in DOTTED),
        of_folder("an ensemble's format", "schema", lambda folder: relisted(
            folder, lambda x: x.update(format="os.system")), "no list of an ensemble"),
    ))  # fmt: skip


MODES: list[Mode] = [paths(), imports()]
