"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.data.boxes import BoxImages as BoxImages
from dinoneck.data.boxes import box_transforms as box_transforms
from dinoneck.data.boxes import collate_boxes as collate_boxes
from dinoneck.data.boxes import to_original as to_original
from dinoneck.data.folders import read_folders as read_folders
from dinoneck.data.folders import read_masks as read_masks
from dinoneck.data.labels import DenseLabels as DenseLabels
from dinoneck.data.labels import count_classes as count_classes
from dinoneck.data.normals import NormalLabels as NormalLabels
from dinoneck.data.panoptic import PanopticImages as PanopticImages
from dinoneck.data.summary import DataSummary as DataSummary
from dinoneck.data.summary import summarise as summarise
from dinoneck.data.tables import read_table as read_table
from dinoneck.demo.pasture import Pasture as Pasture
from dinoneck.images.decoding import read_image_size as read_image_size
from dinoneck.images.preprocessing import Preprocessing as Preprocessing
from dinoneck.images.preprocessing import to_image_pixels as to_image_pixels
from dinoneck.images.preprocessing import to_prepared_pixels as to_prepared_pixels
from dinoneck.images.views import View as View
from dinoneck.images.views import Views as Views
