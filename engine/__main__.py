"""The engine process: wires a runner, the scheduler and the lanes together, and serves until told to stop."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
import typing
import zlib
from pathlib import Path

from engine.config import EngineConfig
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.scheduler import Scheduler, SchedulerConfig
from engine.core.terms import SLO, Checkpoint, Policy, Preemption
from engine.lanes.admission import Admission
from engine.lanes.exchange import Exchange, Mailbox
from engine.lanes.io_thread import IoThread, Lanes
from engine.lanes.socket_lane import SocketLane, SocketLaneConfig
from engine.loop import EngineLoop
from engine.profiling import first_cost_model, store_cost_model
from engine.runner.base import ModelRunner, RunnerInfo
from engine.wire.protocol import PROTOCOL_VERSION, Welcome

log = logging.getLogger("engine")

# The I/O thread waits at most this long for the interpreter while the main thread computes.
SWITCH_INTERVAL_S = 0.0005
EXIT_USAGE = 2  # as argparse's: what was asked for can't be served, and starting again would not help
SIMULATED_VOCAB_SIZE = 32_000
SIMULATED_MAX_MODEL_LEN = 8192


def parse_args(arguments: list[str]) -> EngineConfig:
    """The command line as a config: one flag a field, `--max-num-seqs` for `max_num_seqs`."""
    parser = argparse.ArgumentParser(
        prog="bros-batch engine", description="Compute: bulk from Redis, chat from a socket, on one device."
    )
    types = typing.get_type_hints(EngineConfig)
    for field in dataclasses.fields(EngineConfig):
        flag = "--" + field.name.replace("_", "-")
        kind = types[field.name]
        required = field.default is dataclasses.MISSING and field.name != "served_model_name"
        chosen_later = field.name == "engine_id" or field.default is dataclasses.MISSING
        default = None if chosen_later else field.default
        shown = "" if default is None else f" ({default})"
        about = field.metadata["help"] + shown
        if typing.get_origin(kind) is typing.Literal:
            parser.add_argument(flag, choices=typing.get_args(kind), default=default, help=about)
        elif bool in (kind, *typing.get_args(kind)):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=about)
        else:
            scalar = next(t for t in (*typing.get_args(kind), kind) if t in (int, float, str))
            name = scalar.__name__.upper()
            parser.add_argument(
                flag, type=scalar, default=default, required=required, help=about, metavar=name
            )
    values = vars(parser.parse_args(arguments))
    values["served_model_name"] = values["served_model_name"] or values["model"]
    # The same after a restart, so that it takes up its own work at once; another's on any other host or address.
    address = zlib.crc32(values["listen"].encode())
    values["engine_id"] = values["engine_id"] or f"{socket.gethostname()}-{address:08x}"
    # Secrets may come by the environment: a command line is for all to see.
    values["token"] = values["token"] or os.environ.get("BROS_ENGINE_TOKEN")
    values["redis_url"] = values["redis_url"] or os.environ.get("BROS_REDIS_URL") or None
    return EngineConfig(**values)


def read_model_config(model: str) -> dict[str, typing.Any]:
    """The config.json of a model directory; empty for a model that is only a name."""
    path = Path(model) / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def make_runner(config: EngineConfig) -> ModelRunner:
    """The concrete runner. Raises ValueError or OSError saying what can't be served and why."""
    if config.runner == "simulated":
        from engine.runner.simulated import SimulatedCost, SimulatedRunner

        imitated = read_model_config(config.model)
        max_model_len = config.max_model_len or imitated.get(
            "max_position_embeddings", SIMULATED_MAX_MODEL_LEN
        )
        per_request = -(-max_model_len // config.block_size)
        return SimulatedRunner(
            RunnerInfo(
                num_blocks=config.num_kv_blocks or per_request * config.max_rows(is_gpu=False),
                block_size=config.block_size,
                max_num_seqs=config.max_rows(is_gpu=False),
                max_model_len=max_model_len,
                vocab_size=imitated.get("vocab_size", SIMULATED_VOCAB_SIZE),
                device="simulated",
                dtype="none",
                max_num_batched_tokens=config.max_step_tokens(is_gpu=False),
            ),
            cost=SimulatedCost(config.simulated_step_s, config.simulated_token_s),
            wait=time.sleep,
        )
    if config.tensor_parallel_size > 1:
        from engine.runner.ranks.parallel_runner import ParallelRunner

        return ParallelRunner(config)
    from engine.runner.loading import load_runner

    return load_runner(config)


def open_lanes(config: EngineConfig, info: RunnerInfo, scheduler: Scheduler, exchange: Exchange) -> Lanes:
    """The socket lane, and the pull lane where there is a Redis to pull from."""
    welcome = Welcome(
        version=PROTOCOL_VERSION,
        engine_id=config.engine_id,
        model=config.served_model_name,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
    )
    admission = Admission(scheduler.refusal, info.vocab_size)
    socket_lane = SocketLane(
        SocketLaneConfig(
            welcome=welcome,
            token=config.token,
            default_slo=SLO(config.default_ttft_s, config.default_tpot_s),
            max_waiting_rt=config.max_waiting_rt,
            max_ttft_factor=config.max_ttft_factor,
            admission=admission,
        ),
        exchange,
    )
    if config.redis_url is None:
        return socket_lane, None
    from redis.asyncio import Redis

    from engine.lanes.pull_lane import PullLane, PullLaneConfig

    pull_config = PullLaneConfig(
        model=config.served_model_name,
        engine_id=config.engine_id,
        max_in_flight=info.max_num_seqs + config.be_prefetch,
        claim_timeout_s=config.claim_timeout_s,
        max_deliveries=config.max_deliveries,
        admission=admission,
        about={
            "model": config.served_model_name,
            "max_model_len": info.max_model_len,
            "device": info.device,
            "dtype": info.dtype,
            "url": config.listen,
        },
    )
    return socket_lane, PullLane(pull_config, exchange, Redis.from_url(config.redis_url))


def assemble(
    config: EngineConfig, runner: ModelRunner, cost_model: CostModel | None = None
) -> tuple[EngineLoop, IoThread]:
    """The loop around a runner, and the I/O thread that feeds it; neither is started."""
    info = runner.info
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=info.max_num_seqs,
            max_model_len=info.max_model_len,
            max_num_batched_tokens=info.max_num_batched_tokens,
            reserved_rt_rows=min(max(1, info.max_num_seqs // 8), info.max_num_seqs - 1),
            policy=Policy(config.policy),
            default_slo=SLO(config.default_ttft_s, config.default_tpot_s),
            be_share=config.be_share,
        ),
        KVCacheManager(
            info.num_blocks,
            info.block_size,
            KVOptions(
                sharing=config.kv_sharing,
                preemption=Preemption(config.kv_preemption),
                checkpoint=Checkpoint(config.kv_checkpoint),
                prefix_cache=config.prefix_cache,
                num_host_slots=info.num_host_slots,
            ),
        ),
        cost_model,
    )
    mailbox = Mailbox()
    io = IoThread(
        mailbox,
        lambda exchange: open_lanes(config, info, scheduler, exchange),
        config.listen,
        config.drain_grace_s,
    )
    ahead = config.async_scheduling
    if ahead is None:
        ahead = info.computes_beside_host
    loop = EngineLoop(scheduler, runner, mailbox.receive, io.send, time.monotonic, io.publish, ahead=ahead)
    return loop, io


def serve(config: EngineConfig) -> None:
    """Load, open the lanes, and run the loop until a drain ends."""
    runner = make_runner(config)
    info = runner.info
    cost_model = None
    if config.runner == "torch":
        cost_model = first_cost_model(
            config.model, runner, info.max_num_batched_tokens, config.profile_s, time.perf_counter
        )
    loop, io = assemble(config, runner, cost_model)
    io.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: io.request_drain())
    log.info(
        "serving %s on %s (%s): %d KV blocks of %d tokens, listening on %s",
        config.served_model_name, info.device, info.dtype, info.num_blocks, info.block_size, config.listen,
    )  # fmt: skip
    # A full collection looks at all that was loaded: a quarter of a second in the middle of somebody's answer.
    gc.collect()
    gc.freeze()
    loop.run()
    io.join()
    if cost_model is not None:
        store_cost_model(config.model, info, cost_model)
    runner.close()
    log.info("stopped")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Before torch is imported: its threads spin a little while they wait for each other, then sleep. Waking up takes as
    # long, dozens of times a step; spinning for longer takes the cores from whatever else runs here.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        serve(parse_args(sys.argv[1:]))
    except ValueError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except OSError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
