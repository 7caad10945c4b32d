"""``dinoneck doctor``: what works here and what does not, and what to do about it; for a bug report too."""

from __future__ import annotations

from typing import Any

from dinoneck.cli.text import show


def doctor() -> dict[str, Any]:
    """Check packages, devices, folders and a head on its way through a file; no network is used.

    Exit 1 if something in the core is broken. Paste what it prints into a bug report.

    Example: dinoneck doctor --json
    """
    from dinoneck.checkup import checkup

    findings = checkup()
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            print(f"{group}:")
        show(f"  {finding.state:<7}  {finding.name}: {finding.text}")
        if finding.remedy:
            show(f"           -> {finding.remedy}")
    broken = sum(finding.state == "broken" for finding in findings)
    print(f"{broken} things that dinoneck needs are broken; the arrows state remedies" if broken else "the core works")
    return {"ok": not broken, "findings": [finding._asdict() for finding in findings], "broken": broken}
