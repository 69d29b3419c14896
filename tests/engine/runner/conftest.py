"""Runs the tests of this folder on one thread: models this small are slower on several, above all beside other
tests."""

import torch

torch.set_num_threads(1)
