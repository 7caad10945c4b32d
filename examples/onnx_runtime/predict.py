"""Predict images with a file of ``dinoneck export --with-backbone``, where torch is not installed.

python examples/onnx_runtime/predict.py cover.onnx image.jpg more.jpg
"""

import sys

from dinoneck.runtime import open_exported

for row in open_exported(sys.argv[1])(sys.argv[2:]):
    print(row)
