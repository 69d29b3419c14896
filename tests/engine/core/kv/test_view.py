"""The picture of KV memory shows what the memory holds after any sequence of operations."""

from hypothesis import settings
from hypothesis.stateful import invariant

from engine.core.kv.cache import KVCacheManager
from engine.core.kv.view import occupancy
from engine.core.terms import Lane, Side
from tests.engine.core.kv import test_cache as test_kv_cache
from tests.factories import request


class WatchedMachine(test_kv_cache.KVCacheMachine):
    @invariant()
    def the_picture_is_the_memory(self):
        size, num_blocks = self.kv.block_size, self.kv.num_blocks
        tokens = {side: [0] * num_blocks for side in Side}
        for r in self.requests:
            for extent in r.extents:  # a shared prefix counts once
                tokens[extent.side][extent.block] = extent.length
        idle = self.kv.prefix.blocks()[1]
        cached = [size * (block in idle) for block in range(num_blocks)]
        for max_cells in (1, 5, num_blocks, 1000):
            step = -(-num_blocks // max_cells)
            seen = occupancy(self.kv, max_cells)
            assert seen.blocks_per_cell == step
            for cells, blocks in (
                (seen.left, tokens[Side.LEFT]), (seen.right, tokens[Side.RIGHT]), (seen.cached, cached),
            ):  # fmt: skip
                assert cells == [sum(blocks[i : i + step]) for i in range(0, num_blocks, step)]


TestPicture = WatchedMachine.TestCase
TestPicture.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_large_memory_fits_into_few_cells():
    kv = KVCacheManager(10_000, 16)
    for lane, num_tokens in ((Lane.RT, 1000), (Lane.BE, 50_000)):
        assert kv.extend(request(range(num_tokens), lane=lane), num_tokens)
    seen = occupancy(kv, 256)
    assert len(seen.left) == len(seen.right) == len(seen.cached) == 250
    assert (sum(seen.left), sum(seen.right), sum(seen.cached)) == (1000, 50_000, 0)
