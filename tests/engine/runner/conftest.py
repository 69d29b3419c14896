"""Models this small are slower on more than one thread, above all where other tests run beside these."""

import torch

torch.set_num_threads(1)
