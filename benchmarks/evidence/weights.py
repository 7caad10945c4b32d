"""Where published weights come from: ``DINONECK_WEIGHTS`` is ``hub``, or a folder, then used without a network.

The folder is laid out as the Hub's cache (``hf download NAME --cache-dir FOLDER``) and torch.hub's.
"""

import os

WEIGHTS = os.environ.get("DINONECK_WEIGHTS", "")
# set here, as huggingface_hub reads its variables once, when it is imported
if WEIGHTS not in ("", "hub"):
    os.environ |= {"HF_HUB_CACHE": WEIGHTS, "HF_HUB_OFFLINE": "1", "TORCH_HOME": WEIGHTS}
