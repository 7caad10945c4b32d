"""25 PatchMean heads over 6 views of one photo: one batched call against the loop.

    python -m benchmarks.ensemble [--rounds 21] [--threads 1 2]

The work is that of the design source: tokens (6, 256, 1536) after CLS, 5 targets x 5 folds, each
1536 -> 128 -> LeakyReLU -> 1 -> ReLU -> mean. Peers: the loop as published (25 heads on the sliced patches),
the loop on contiguous patches (layout fixed), and each compiled. All variants are checked equal first.
Writes benchmarks/results/ensemble.json and .md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import compare, machine, markdown
from dinoneck import HeadEnsemble, PatchMeanHead, Task, Tokens

TARGETS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")
RESULTS = Path(__file__).with_name("results")


class Loop(nn.Module):
    """The published formulation: one small network after the other."""

    def __init__(self, networks: list[nn.Sequential]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, patches: Tensor) -> Tensor:
        """(V, N, C) -> (5,): mean over folds and views."""
        answers = [torch.relu(network(patches)).mean(dim=(1, 2)) for network in self.networks]
        return torch.stack(answers).reshape(5, 5, -1).mean(dim=(1, 2))


def build() -> tuple[HeadEnsemble, Loop]:
    """The same 25 heads in both forms."""
    torch.manual_seed(0)
    heads = [PatchMeanHead(1536, [Task(name, activation="relu", unit="g")]) for name in TARGETS for _ in range(5)]
    mlps: list[Any] = [head.mlps[0] for head in heads]
    networks = [nn.Sequential(mlp.hidden, nn.LeakyReLU(), mlp.out) for mlp in mlps]
    return HeadEnsemble.from_heads(heads).eval(), Loop(networks).eval()


@torch.no_grad()
def measure(threads: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Check equality, then time."""
    torch.set_num_threads(threads)
    ensemble, loop = build()
    sequence = torch.randn(6, 257, 1536)
    tokens = Tokens.from_sequence(sequence, image_size=(224, 224), patch_size=14, num_prefix_tokens=1)
    sliced, fixed = tokens.patches[0], tokens.patches[0].contiguous()

    def ours(module: Any = ensemble) -> Tensor:
        return torch.stack(list(module(tokens).values())).mean(dim=1)[:, 0]

    variants = {
        "loop as published": lambda: loop(sliced),
        "loop, layout fixed": lambda: loop(fixed),
        "dinoneck": ours,
    }
    if compiled:
        quick, quick_loop = torch.compile(ensemble), torch.compile(loop)
        variants["loop as published, compiled"] = lambda: quick_loop(sliced)
        variants["dinoneck, compiled"] = lambda: ours(quick)
    truth = loop.double()(sliced.double())
    loop.float()
    for name, run in variants.items():
        error = (run().double() - truth).abs().max().item()
        if error > 1e-6 * truth.abs().max().item() + 1e-7:
            raise SystemExit(f"{name} differs from the float64 loop by {error}")
    return compare(variants, peer="loop as published", rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    report, text = {"machine": machine()}, []
    for threads in options.threads:
        rows = measure(threads, options.rounds, not options.no_compile)
        report[f"threads={threads}"] = rows
        text.append(markdown(f"25 heads x 6 views, (6, 256, 1536), float32, {threads} thread(s)", rows))
        print(text[-1], flush=True)
    options.out.mkdir(exist_ok=True)
    (options.out / "ensemble.json").write_text(json.dumps(report, indent=2) + "\n")
    shown = report["machine"]
    head = f"Measured on {shown['cpu']}, {shown['versions']}; `python -m benchmarks.ensemble`.\n\n"
    (options.out / "ensemble.md").write_text(head + "\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
