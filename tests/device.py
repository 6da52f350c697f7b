"""The device on which the invariants are tested: the CPU, or what ``SEENN_TEST_DEVICE`` names."""

from __future__ import annotations

import os
from typing import Final

import torch

DEVICE: Final = torch.device(os.environ.get("SEENN_TEST_DEVICE", "cpu"))
