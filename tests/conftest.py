"""One thread a test process: tests run side by side, and sums over one thread have one order."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
torch.set_num_threads(1)
