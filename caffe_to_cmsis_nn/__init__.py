# SPDX-License-Identifier: Apache-2.0
"""The library behind nn_quantizer.py and code_gen.py: from a trained Caffe network to CMSIS-NN code."""

import os

__version__ = "1.0.0"

# onnxruntime 1.32 reports each run to its maker unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
