"""What the transcripts run: per scene, command lines that are given one after another in one folder.

Paths are relative to the scene's folder, which ``materials.py`` fills; ``--json`` is added where
the verb has it. This file imports nothing, so that the command lines can be read by programs that
run them with another version of dinoneck (``tests/against``).
"""

from __future__ import annotations

TINY = "--backbone dinoneck_tiny"
QUICK = f"{TINY} --folds 2 --epochs 1 --hidden-dim 4 --batch-size 4"

EXTRACT = f"extract images {TINY} --size 32x64"
PASTURE = f"train --pasture 8 {QUICK}"
TABLE = f"train --csv table.csv --group sampling {QUICK}"
PREDICT = "predict images --heads"

FAST = {
    "usage": """
        --version
        serve
        serve head.safetensors --queue -1
        extract images --out s --size 32 --batch-size 0
        train --out r --head patch_maen
        viz
    """,
    "head files": """
        inspect head.safetensors
        inspect heads
        inspect damaged.safetensors
        inspect table.csv
        verify head.safetensors
        verify heads
        verify head.safetensors damaged.safetensors
        list backbones
        list backbones dinov3
        list backbones nothing
        list heads
        doctor
    """,
    "stores": f"""
        {EXTRACT} --out s --shard 0/2
        {EXTRACT} --out s
        {EXTRACT} --out s
        {EXTRACT} --out s --dtype int8
        extract broken {TINY} --size 32x64 --out t
        extract broken {TINY} --size 32x64 --out t --skip-unusable
        extract images {TINY} --size 8x64 --out v --resize crop
        extract images {TINY} --size 30x64 --out v
        {EXTRACT} --out w --views flips4 --layers 2 5 --no-norm --dtype bf16 --batch-size 3 --workers 1
        {EXTRACT} --out x --views nothing
        verify s
        verify s w none
    """,
    "predictions": f"""
        {PREDICT} head.safetensors --out p.csv
        predict images/0000.jpg --heads heads --out q.csv --maps maps --overlay pictures --tta flip4
        predict broken --heads head.safetensors --out b.csv
        predict broken --heads head.safetensors --out b.csv --skip-unusable
        {PREDICT} bare.safetensors --out n.csv
        {PREDICT} damaged.safetensors --out n.csv
        predict none --heads head.safetensors --out n.csv
        {PREDICT} head.safetensors --out t.csv --tile 32x32 --overlap 8
        {PREDICT} head.safetensors other.safetensors --out n.csv
        {PREDICT} head.safetensors --out k.csv --probe
    """,
    "scores": """
        evaluate --heads heads/fold-0.safetensors heads/fold-1.safetensors --truth truth.csv --image-column image
        evaluate . --heads head.safetensors --truth truth.csv --at-least mass=-1e9
        evaluate . --heads head.safetensors other.safetensors --truth truth.csv --at-least mass=0.9
        evaluate . --heads head.safetensors --truth table.csv
        evaluate . --heads head.safetensors --truth none.csv
    """,
    "painting": f"""
        paint images {TINY} --size 32x64 --classes left right --out p
        paint images {TINY} --size 32x64 --strokes strokes.json --out p
        paint images {TINY} --strokes newer.json --out q
        paint images {TINY} --classes left --out q
        paint broken {TINY} --classes left right --out q
        paint none {TINY} --classes left right --out q
    """,
    "hub": f"""
        push head.safetensors me/one --private --message spring
        push damaged.safetensors me/two
        verify me/one
        {PREDICT} me/one --out p.csv
    """,
}
SLOW = {
    "training": f"""
        {PASTURE} --out a
        {PASTURE} --out a
        {PASTURE} --out a --overwrite
        {PASTURE} --out n --head nothing
        {PASTURE} --out n --loss-weighting nothing
        {TABLE} --targets Dry_Total_g cover --aux-targets GDM_g --unit g --minimum 0 --out b
        {TABLE} --targets nothing --out n
        {TABLE} --targets cover --folds 9 --out n
        {TABLE} --targets cover --labels mask --classes soil clover dead green --head fpn --layers 2 5 --out c
        {TABLE} --labels mask --head dense --fold 1 --out d
        {TABLE} --targets cover --head '{{type: cls_gating, mode: query}}' --ema-decay 0.9 --size 32 --out f
        {TABLE} --targets cover --store none --out n
        train run.yaml --out e
        train wrong.yaml --out n
        extract csiro/train --root csiro --out s --backbone dinoneck_tiny --size 32x64 --views flips4
        train --csv csiro/table.csv --targets GDM_g --store s --views 2 --folds 2 --epochs 1 --hidden-dim 4 --out g
        predict csiro/test --heads g/heads --out held.csv
    """,
    "figures": f"""
        viz report head.safetensors images --out r.html --truth truth.csv --no-tokens
        viz report head.safetensors images --out r.html
        viz report heads broken --out s.html
        viz report heads broken --out s.html --strict
        viz tokens images {TINY} --size 32x64 --out t.png
        viz tokens images {TINY} --size 32x64 --out u.html
        viz tokens none {TINY} --size 32x64 --out v.png
    """,
    "exports": """
        export head.safetensors --format pt2 --grid 2x4 --out h.pt2
        export damaged.safetensors --format pt2 --out j.pt2
        export head.safetensors --format onnx --size 32x64 --out k.onnx
        export head.safetensors --format jpeg --out k
        export head.safetensors --with-backbone --format onnx --size 32x64 --out m.onnx
        export head.safetensors --with-backbone --format pt2 --size 32x64 --maps --no-check --out m.pt2
    """,
    "demo": f"""
        demo --out demo --images 8 --folds 2 --epochs 1 {TINY}
        demo --out demo --images 0
        demo --out images --images 8 {TINY}
    """,
}


def commands(scene: str) -> list[str]:
    """The command lines of a scene."""
    return [line.strip() for line in {**FAST, **SLOW}[scene].strip().splitlines()]
