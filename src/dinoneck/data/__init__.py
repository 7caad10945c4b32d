"""Data sets: tables, folders, masks and boxes; and what of images is used along with them."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    boxes=["BoxImages", "box_transforms", "collate_boxes", "to_original"],
    panoptic=["PanopticImages"],
    labels=["DenseLabels", "count_classes"],
    normals=["NormalLabels"],
    folders=["read_folders", "read_masks"],
    tables=["read_table"],
    summary=["DataSummary", "summarise"],
)
HOMES |= homes(
    "dinoneck.images",
    views=["View", "Views"],
    decoding=["read_image_size"],
    preprocessing=["Preprocessing", "to_image_pixels", "to_prepared_pixels"],
)
HOMES |= homes("dinoneck.demo", pasture=["Pasture"])

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
