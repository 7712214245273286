# SPDX-License-Identifier: Apache-2.0
"""Choices and defaults that flags offer; without imports, so that --help is quick."""

WEIGHTS_8, WEIGHTS_4, WEIGHTS_MIXED = WEIGHT_BITS = ("8", "4", "mixed")
LOSS = 0.3  # percentage points that mixed weights may cost
ACCURACY = "accuracy"  # the Accuracy layer's name
RAM_FAST, RAM_LEAST = "fast", "least"
MEMORY = 1 << 31  # bytes of images and layer outputs that a search may keep in all
CHANNEL_ORDERS = ("bgr", "rgb")
TEST_IMAGES = 1  # that a program checks at start-up, where the data are at hand
