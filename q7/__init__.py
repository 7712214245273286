# SPDX-License-Identifier: Apache-2.0
"""The library behind nn_quantizer.py and code_gen.py: from a trained Caffe network to CMSIS-NN code."""

__version__ = "1.0.0"
