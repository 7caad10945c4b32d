"""Boxes in YOLO's form -> one COCO file, by supervision: ``python to_coco.py FOLDER boxes.json``."""

from __future__ import annotations

import sys

import supervision as sv


def main() -> None:
    """Convert the folder of the command line."""
    folder, file = sys.argv[1:]
    dataset = sv.DetectionDataset.from_yolo(
        images_directory_path=f"{folder}/images",
        annotations_directory_path=f"{folder}/labels",
        data_yaml_path=f"{folder}/data.yaml",
    )
    dataset.as_coco(annotations_path=file)


if __name__ == "__main__":
    main()
