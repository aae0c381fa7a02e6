"""One thread for every test: the models are tiny, and two threads that wait for a busy core are slower than one."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
