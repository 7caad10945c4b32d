#!/bin/sh
# A newcomer's first hour, from an empty environment to numbers, masks, boxes and a report:
#
#     sh first_hour.sh FOLDER
#
# In an environment that has dinoneck nothing is installed. DINONECK names another source than the
# package index, such as a wheel: DINONECK="$PWD/dinoneck-0.4.0-py3-none-any.whl[train,detection]".
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

if ! command -v dinoneck > /dev/null; then
    python3 -m venv env
    . env/bin/activate
    pip install --quiet "${DINONECK:-dinoneck[train,detection]}"
fi

# own data: photos with masks and a table, and cells with boxes
python "$here/draw.py" .

# the tiny backbone has random weights, so that nothing is downloaded; for real use leave it out
tiny="--backbone dinoneck_tiny"

# numbers: the shares of the table, by plots; first a look at what is read, in run/data.jpg
dinoneck train --csv field/cover.csv --targets soil crop weed --group plot --out run --dry-run
dinoneck train --csv field/cover.csv --targets soil crop weed --group plot $tiny \
    --epochs 4 --folds 3 --out run
dinoneck predict new/images --heads run --out new.csv --overlay pictures
dinoneck evaluate new/images --heads run --truth new/cover.csv --group plot
dinoneck viz report run new/images --truth new/cover.csv --out report.html

# masks: the folder as it is
dinoneck train --images field --classes soil crop weed $tiny --epochs 2 --folds 2 --out run_masks
dinoneck predict new/images --heads run_masks --out masks.csv --maps maps
dinoneck evaluate new/images --heads run_masks --truth new/masks

# boxes in YOLO's form
dinoneck train --boxes cells/data.yaml $tiny --size 96x128 --epochs 2 --out run_boxes
dinoneck predict cells/images --heads run_boxes --out boxes.csv

# what was written
dinoneck inspect run
dinoneck verify run run_masks/head.safetensors run_boxes/detector.safetensors
