"""``dinoneck doctor`` and ``list``: what works on this machine, and the names of backbones and head types."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import Positional

from dinoneck.backbones.known import KNOWN
from dinoneck.cli.text import show, table
from dinoneck.version import versions


def doctor() -> dict[str, Any]:
    """Check packages, the device, and a head that is saved, loaded and used; no network is used.

    Exit 1 if something that dinoneck needs is broken. Paste what it prints into a bug report.

    Example: dinoneck doctor --json
    """
    from dinoneck.checkup import checkup

    findings = []
    for finding in checkup():
        findings.append(finding._asdict())
        show(f"{finding.state:<7}  {finding.name}: {finding.text}")
        if finding.remedy:
            show(f"         -> {finding.remedy}")
    broken = sum(finding["state"] == "broken" for finding in findings)
    print(f"{broken} things that dinoneck needs are broken; the arrows state remedies" if broken else "the core works")
    return {"ok": not broken, "versions": versions(), "findings": findings, "broken": broken}


_PUBLISHED = ("name", "task", "backbone", "licence", "gated")
_COLUMNS = ("name", "patch", "width", "depth", "registers", "licence", "transformers", "torch_hub")


def backbones(part: Annotated[str, Positional] = "") -> dict[str, Any]:
    """List the published backbones: names, patch, width, depth, registers, licence; exit 1 if none is found.

    --backbone takes the names of timm (also timm/NAME, hf-hub:timm/NAME), transformers and torch.hub. The weights are
    timm's, which need no account; with --backbone-source transformers they are facebook/NAME, gated for DINOv3.

    Example: dinoneck list backbones dinov3

    Args:
        part: show only names that contain this.
    """
    rows = []
    for model in KNOWN:
        for tag, hub in model.hubs.items():
            official = model.official if tag == next(iter(model.hubs)) else None
            names = [f"{model.name}.{tag}", hub, official]
            if any(part in name for name in names if name):
                numbers = (model.patch, model.width, model.depth, model.registers)
                rows.append((names[0], *numbers, model.license, hub, official))
    return _listing("backbones", _COLUMNS, rows, part)


def heads(part: Annotated[str, Positional] = "") -> dict[str, Any]:
    """List the registered head types, then the heads that others published; exit 1 if none is found.

    Head files name the types, and --head takes those of heads and necks. 'dinoneck --import MODULE list heads' adds
    those that a module registers. --heads takes the names of published heads.

    Example: dinoneck list heads

    Args:
        part: show only names that contain this.
    """
    from dinoneck.published import list_published
    from dinoneck.registry import classes

    published = [
        (row.name, row.task, row.backbone, row.licence, "yes" if row.gated else "no")
        for row in list_published()
        if part in row.name or part in row.task
    ]
    types = [pair for pair in classes().items() if part in pair[0]]
    found = _listing("heads", ("name", "class"), types, part) if types or not published else {}
    return found | (_listing("published", _PUBLISHED, published, part) if published else {})


def _listing(what: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], part: str) -> dict[str, Any]:
    """Print rows, and return them as records."""
    if rows:
        print(table(columns, [["-" if cell is None else str(cell) for cell in row] for row in rows]))
    else:
        print(f"none of the {what} has {part!r} in its name; leave it out to list all")
    return {"ok": bool(rows), what: [dict(zip(columns, row, strict=True)) for row in rows]}


listed = {"backbones": backbones, "heads": heads}
