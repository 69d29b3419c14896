"""Which request holds which KV slots: block pool, prefix cache, host copies, and blocks that both lanes share."""
