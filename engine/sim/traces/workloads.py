"""Named workloads: the statistics of public traces, from which synthetic traces are drawn.

Lengths are in tokens. Prompt and output lengths are drawn independently. `source` says where the statistics come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.sim.traces.arrival_process import ArrivalProcess, Gamma, OnOff
from engine.sim.traces.lengths import Lengths, Lognormal, Percentiles, Uniform

POISSON = Gamma(1.0)


@dataclass(frozen=True, slots=True)
class Workload:
    """The distributions of one workload. `rate` is that of the trace in requests per second, None if it has none."""

    name: str
    prompt: Lengths
    output: Lengths
    source: str
    arrivals: ArrivalProcess = POISSON
    rate: float | None = None


_ALL = (
    Workload(
        "azure-2023-conv",
        Percentiles((29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142)),
        Percentiles((16, 41, 54, 85, 129, 395, 424, 451, 880)),
        "Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv (19,366 requests)",
        Gamma(1.09),
        5.53,
    ),
    Workload(
        "azure-2023-code",
        Percentiles((17, 75, 147, 578, 1469, 2744, 5188, 7303, 7436)),
        Percentiles((6, 6, 7, 9, 13, 24, 55, 90, 251)),
        "Azure/AzurePublicDataset, AzureLLMInferenceTrace_code (8,819 requests)",
        # In the trace, the coefficient of variation of the times between arrivals is 13.2 overall and 3.2 within a
        # minute, and 12 of its 58 minutes are empty. These parameters give about the same.
        OnOff(3.2, 0.4, 80.0),
        2.57,
    ),
    Workload(
        "sharegpt-8k",
        Percentiles((12, 29, 74, 580, 1730, 3734, 5696, 6563, 7434)),
        Percentiles((6, 44, 84, 228, 415, 628, 834, 920, 998)),
        "ShareGPT as prepared by sarathi-serve (30,731 requests)",
    ),
    Workload(
        "arxiv-summarization-4k",
        Percentiles((73, 749, 1242, 1986, 2730, 3370, 3702, 3813, 3933)),
        Percentiles((36, 60, 78, 115, 167, 242, 372, 736, 3271)),
        "data of microsoft/vidur (28,257 requests)",
    ),
    Workload(
        "bros-best-effort",
        Uniform(512, 1024),
        Uniform(32, 128),
        "the best-effort workload of the BROS paper (arXiv 2504.09590)",
    ),
    Workload(
        "cpu-mini",
        Lognormal(309, 0.6, 16, 1536),
        Lognormal(48, 0.3, 4, 256),
        "this project: bulk that two CPU cores can serve with an 80M-parameter model",
        Gamma(2.0),
    ),
    Workload(
        "cpu-mini-chat",
        Lognormal(46, 0.8, 4, 512),
        Lognormal(24, 0.5, 2, 256),
        "this project: chats to combine with cpu-mini",
        Gamma(2.0),
        2.0,
    ),
)
WORKLOADS = {workload.name: workload for workload in _ALL}
