"""Images, tables of images with targets, and the procedural pasture."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    boxes=["BoxImages", "box_transforms", "collate_boxes", "to_original"],
    panoptic=["PanopticImages"],
    labels=["DenseLabels", "count_classes"],
    normal_labels=["NormalLabels"],
    pasture=["Pasture"],
    views=["View", "Views"],
    decoding=["read_image_size"],
    preprocessing=["Preprocessing", "to_image_pixels", "to_prepared_pixels"],
    folders=["read_folders", "read_masks"],
    tables=["read_table"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
