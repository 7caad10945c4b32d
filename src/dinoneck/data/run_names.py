"""The names of the files and folders of a training run, by which a folder is known to be one; no torch is imported."""

from __future__ import annotations

REPORT = "report.json"
HEAD_FILE = "head.safetensors"
DETECTOR = "detector.safetensors"
PREDICTIONS = "out_of_fold.csv"
TRAINED_ON = "trained_on.csv"
# what was read: lines, a sheet of images, and both the lines and the facts as JSON
DATA_TEXT = "data.txt"
DATA_SHEET = "data.jpg"
DATA_FACTS = "data.json"
# folders with a file for each fold
HEADS = "heads"
BASELINES = "baselines"
LOGS = "logs"
# of a training that is not finished, and the file in it that describes the run
UNFINISHED = "unfinished"
RUN = "run.json"
