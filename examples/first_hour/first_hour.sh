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
    pip install --quiet "${DINONECK:-dinoneck[train,detection]}" supervision
fi

# own data: photos with masks and a table, and cells with boxes
python "$here/draw.py" .

# the tiny backbone has random weights, so that nothing is downloaded; for real use leave it out
tiny="--backbone dinoneck_tiny"

# numbers: the shares of the table, by plots
dinoneck train --csv field/cover.csv --targets soil crop weed --group plot $tiny \
    --epochs 4 --folds 3 --out run
dinoneck predict new --heads run --out new.csv --overlay pictures
dinoneck evaluate new --heads run --truth new/cover.csv --group plot
dinoneck viz report run new --truth new/cover.csv --out report.html

# masks: the folder as it is
dinoneck train --images field --classes soil crop weed $tiny --epochs 2 --folds 2 --out run_masks
dinoneck predict new --heads run_masks --out masks.csv --maps maps
dinoneck evaluate new --heads run_masks --truth new

# boxes: YOLO's labels become a COCO file
python "$here/to_coco.py" cells boxes.json
dinoneck train --boxes boxes.json --images cells/images $tiny --size 96x128 --epochs 2 \
    --out run_boxes
dinoneck predict cells/images --heads run_boxes --out boxes.csv

# what was written
dinoneck inspect run
dinoneck verify run run_masks/head.safetensors run_boxes/detector.safetensors
