"""KV that is saved to host memory and restored to other slots is unchanged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from engine.core.terms import SamplingParams
from engine.runner.kv.host import BUFFER_BYTES, NUM_BUFFERS, HostKV, staging_bytes
from engine.runner.kv.memory import LayerCache, num_host_slots
from engine.runner.streams import CpuStreams
from tests.engine.runner.driver import Driver, load_runner
from tests.factories_models import make_model

CPU = torch.device("cpu")
NUM_OUTPUT = 20
NUM_HOST_SLOTS = 100
SAMPLING = SamplingParams(max_tokens=1000, temperature=0.0, ignore_eos=True, logprobs=1)
PROMPT = [random.Random(3).randrange(3, 300) for _ in range(40)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("model"), seed=1)


def logprobs(llama: Path, kept: int, saved_to: list[int], restored_from: list[int]) -> list[float]:
    """Log-probabilities of the tokens of a request that is preempted and keeps `kept` computed tokens. The others are
    saved to and restored from these host slots, and all their device slots are overwritten in between."""
    driver = Driver(load_runner(llama, num_host_slots=NUM_HOST_SLOTS, num_kv_blocks=10))
    sequence = driver.add(PROMPT, SAMPLING, row=2)
    driver.run(6)
    if saved_to:
        lost = set(sequence.slots[kept:])
        driver.save(sequence, kept, saved_to + list(range(90, 90 + len(lost) - len(saved_to))))
        other = driver.add(PROMPT * 4, row=5)
        other.finished = "in the way"
        driver.step([(other, len(driver.free_slots))])
        assert lost <= set(other.slots)
        driver.truncate(other, 0)
        driver.restore(sequence, restored_from)
    while len(sequence.output) < NUM_OUTPUT:
        driver.step([(sequence, 1)])
    return [drawn.logprob for drawn in sequence.logprobs]


@pytest.mark.parametrize(("kept", "num_restored"), [(0, 45), (1, 44), (17, 20), (44, 1)])
def test_saved_overwritten_and_restored_elsewhere(llama: Path, kept: int, num_restored: int) -> None:
    slots = random.Random(1).sample(range(90), num_restored)
    assert logprobs(llama, kept, slots, slots) == pytest.approx(logprobs(llama, 0, [], []), abs=1e-4)


def test_a_wrong_host_slot_changes_the_output(llama: Path) -> None:
    slots = list(range(45))
    others = (
        slots[:20] * 2 + slots[:5]
    )  # a permutation would change nothing: to attention, a context is a set
    assert logprobs(llama, 0, slots, others) != pytest.approx(logprobs(llama, 0, [], []), abs=1e-2)


def make_caches(num_slots: int) -> dict[int, LayerCache]:
    """Two layers of different shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (2, 4, 3), 3: (1, 5, 2)}
    return {
        layer: LayerCache(
            torch.randn(num_slots, heads, size, generator=generator),
            torch.randn(num_slots, heads, size_v, generator=generator),
            None,
        )
        for layer, (heads, size, size_v) in shapes.items()
    }


def test_every_layer_and_size_is_copied() -> None:
    device, before = make_caches(20), make_caches(20)
    host_kv = HostKV(device, 5, CPU, CpuStreams())
    for saved, restored in (([3, 1, 19], [7, 8, 9]), ([4, 2], [11, 10])):
        slots = [4, 0, 2][: len(saved)]
        host_kv.save(saved, slots)
        host_kv.restore(slots, restored)
        for layer, cache in device.items():
            assert torch.equal(cache.k[restored], before[layer].k[saved])
            assert torch.equal(cache.v[restored], before[layer].v[saved])
    host_kv.close()
    host_kv.close()
    with pytest.raises(ValueError, match="closed"):
        host_kv.save([0], [1])


def test_slots_that_do_not_exist_raise() -> None:
    host_kv = HostKV(make_caches(20), 5, CPU, CpuStreams())
    with pytest.raises(ValueError, match="host slot is outside of the 5"):
        host_kv.save([0], [5])
    with pytest.raises(ValueError, match="host slot is outside of the 5"):
        host_kv.restore([-1], [0])
    with pytest.raises(ValueError, match="device slot is outside of the 20"):
        host_kv.restore([0], [20])
    with pytest.raises(ValueError, match="device slot is outside of the 20"):
        host_kv.save([-1], [0])
    with pytest.raises(ValueError, match="2 device slots for 1"):
        host_kv.restore([0], [1, 2])
    with pytest.raises(ValueError, match="same host slot"):
        host_kv.save([0, 1, 2], [3, 1, 3])
    with pytest.raises(ValueError, match="same device slot"):
        host_kv.restore([0, 1, 2], [3, 1, 3])
    host_kv.save([], [])
    with pytest.raises(ValueError, match="--num-host-slots"):
        HostKV(make_caches(20), 0, CPU, CpuStreams()).save([0], [0])


def test_staging_is_bounded() -> None:
    assert staging_bytes(1000, 0) == 0
    assert staging_bytes(1000, 3) == 2 * NUM_BUFFERS * 3000
    assert staging_bytes(1000, 10**9) == 2 * NUM_BUFFERS * (BUFFER_BYTES // 1000) * 1000
    assert staging_bytes(BUFFER_BYTES + 1, 10**9) == 2 * NUM_BUFFERS * (BUFFER_BYTES + 1)


def test_memory_for_all_slots_or_for_half_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 10_000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert num_host_slots(10, 100, CPU) == 100
    assert num_host_slots(10, 300, CPU) == 50
    assert num_host_slots(10, 500, CPU) == 0


def test_a_runner_allocates_what_memory_allows(llama: Path) -> None:
    info = load_runner(llama).info
    assert info.num_host_slots == info.num_blocks * info.block_size
