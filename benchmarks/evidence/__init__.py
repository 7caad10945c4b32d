"""What dinoneck reaches with published weights: parity of libraries, reference heads, points; see ``__main__``.

``DINONECK_WEIGHTS`` is ``hub``, or a folder laid out as the Hub's cache (``hf download NAME --cache-dir FOLDER``) and
torch.hub's, which is then used without a network.
"""

import os

WEIGHTS = os.environ.get("DINONECK_WEIGHTS", "")
if WEIGHTS not in ("", "hub"):  # set here, as huggingface_hub reads its variables once, when it is imported
    os.environ |= {"HF_HUB_CACHE": WEIGHTS, "HF_HUB_OFFLINE": "1", "TORCH_HOME": WEIGHTS}
