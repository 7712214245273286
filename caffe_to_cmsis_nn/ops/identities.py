# SPDX-License-Identifier: Apache-2.0
"""Layers that change nothing on the device."""

IDENTITIES = {  # Caffe's types, and why they change nothing
    "Dropout": "It scales while training only.",
    "Split": "One blob for several layers, which may also read it without a Split.",
    "Silence": "It reads what nobody else does, and writes nothing.",
}
