# SPDX-License-Identifier: Apache-2.0
"""Layers that change nothing on the device."""

IDENTITIES = {  # by Caffe type: why the layer changes nothing
    "Dropout": "Only active during training.",
    "Split": "Passes one blob to several layers; they may also read it without a Split.",
    "Silence": "Reads blobs that no other layer reads, and writes nothing.",
}
