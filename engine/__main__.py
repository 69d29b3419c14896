"""The engine process: wires a runner, the scheduler and the endpoints together, and serves until it is told to stop."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.command_line import parse_args
from engine.config import EngineConfig, reserved_rt_rows
from engine.core.config import SchedulerConfig
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Checkpoint, Policy, Preemption
from engine.gguf_files.place import gguf_file
from engine.lanes.admission import SocketAdmission
from engine.lanes.client_requests import RequestContext
from engine.lanes.exchange import Exchange, Mailbox
from engine.lanes.grammar_gate import GrammarGate
from engine.lanes.io_thread import Endpoints, IoThread
from engine.lanes.loop_watch import LoopWatch
from engine.lanes.socket_connection import ServerContext
from engine.lanes.socket_server import SocketServer
from engine.loop import EngineLoop
from engine.profiling import first_cost_model, store_cost_model
from engine.pulse import Pulse
from engine.runner.base import ModelRunner, RunnerInfo
from engine.step_mark import LastStep, StepMark, open_step_mark
from engine.thread_count import ThreadCount
from engine.weights_id import weights_id
from engine.wire.protocol import PROTOCOL_VERSION, Welcome

log = logging.getLogger("engine")

# While the main thread computes, the I/O thread waits at most this long for the interpreter.
SWITCH_INTERVAL_S = 0.0005
REDIS_TIMEOUT_S = 10.0  # after this, a Redis that hangs or whose host is gone is an error, and is tried again
EXIT_USAGE = 2  # as with argparse: the configuration cannot be served, so a restart would not help
SIMULATED_VOCAB_SIZE = 32_000
SIMULATED_MAX_MODEL_LEN = 8192
SIMULATED_HIDDEN_SIZE = 16


def local_model(config: EngineConfig) -> EngineConfig:
    """The configuration, with a model directory in place of a GGUF file. Raises ValueError or OSError."""
    file = gguf_file(config.model)
    if file is None:
        return config
    from engine.gguf_files.convert import with_model_directory

    return with_model_directory(config, file)


def make_runner(config: EngineConfig) -> ModelRunner:
    """The runner that `config` asks for. Raises ValueError or OSError, which says what cannot be served and why."""
    # Imported here, because torch takes seconds to load and a simulated runner does not need it.
    if config.runner == "simulated":
        return make_simulated_runner(config)
    if config.tensor_parallel_size > 1:
        from engine.runner.ranks.parallel_runner import ParallelRunner

        return ParallelRunner(config)
    # What the import makes stays. The collector would look at it again and again, for a seventh of the import's time.
    gc.disable()
    from engine.runner.loading import load_runner

    gc.freeze()
    gc.enable()
    return load_runner(config)


def make_simulated_runner(config: EngineConfig) -> ModelRunner:
    """A runner that computes no model, but has the context length and the vocabulary of the one in `config.model`."""
    from engine.runner.simulated import SimulatedCost, SimulatedRunner

    path = Path(config.model) / "config.json"
    model: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    max_model_len = config.max_model_len or model.get("max_position_embeddings", SIMULATED_MAX_MODEL_LEN)
    blocks_per_request = -(-max_model_len // config.block_size)
    info = RunnerInfo(
        num_blocks=config.num_kv_blocks or blocks_per_request * config.max_rows(is_gpu=False),
        block_size=config.block_size,
        max_num_seqs=config.max_rows(is_gpu=False),
        max_model_len=max_model_len,
        vocab_size=model.get("vocab_size", SIMULATED_VOCAB_SIZE),
        device="simulated",
        dtype="none",
        max_num_batched_tokens=config.max_step_tokens(is_gpu=False),
        hidden_size=model.get("hidden_size", SIMULATED_HIDDEN_SIZE),
    )
    cost = SimulatedCost(config.simulated_step_s, config.simulated_token_s)
    return SimulatedRunner(info, cost=cost, wait=time.sleep)


def make_scheduler(config: EngineConfig, info: RunnerInfo, cost_model: CostModel | None) -> Scheduler:
    """The scheduler, with the KV memory that the runner has."""
    kv_options = KVOptions(
        sharing=config.kv_sharing,
        preemption=Preemption(config.kv_preemption),
        checkpoint=Checkpoint(config.kv_checkpoint),
        prefix_cache=config.prefix_cache,
        num_host_slots=info.num_host_slots,
    )
    scheduler_config = SchedulerConfig(
        max_num_seqs=info.max_num_seqs,
        max_model_len=info.max_model_len,
        max_num_batched_tokens=info.max_num_batched_tokens,
        reserved_rt_rows=reserved_rt_rows(info.max_num_seqs),
        policy=Policy(config.policy),
        default_slo=SLO(config.default_ttft_s, config.default_tpot_s, config.rt_slowdown),
        be_share=config.be_share,
        trims=info.trims,
    )
    kv = KVCacheManager(info.num_blocks, info.block_size, kv_options)
    return Scheduler(scheduler_config, kv, cost_model)


def make_endpoints(
    config: EngineConfig, runner: ModelRunner, scheduler: Scheduler, exchange: Exchange, last_step: LastStep
) -> Endpoints:
    """The socket server and, if there is a Redis to pull from, the item puller."""
    info, gate = runner.info, GrammarGate(runner.grammars)
    welcome = Welcome(
        version=PROTOCOL_VERSION,
        engine_id=config.engine_id,
        model=config.served_model_name,
        max_model_len=scheduler.max_request_tokens,
        vocab_size=info.vocab_size,
        hidden_size=info.hidden_size,
    )
    default_slo = SLO(config.default_ttft_s, config.default_tpot_s, config.rt_slowdown)
    requests = RequestContext(
        default_slo=default_slo,
        admission=SocketAdmission(welcome, exchange, config.max_waiting_rt, config.max_ttft_factor),
        exchange=exchange,
        gate=gate,
    )
    server = SocketServer(ServerContext(welcome, config.token, requests))
    if config.redis_url is None:
        return Endpoints(server, puller=None)
    from redis.asyncio import Redis

    from engine.lanes.item_puller import ItemPuller
    from engine.lanes.item_puller_config import ItemPullerConfig

    puller_config = ItemPullerConfig(
        model=config.served_model_name,
        engine_id=config.engine_id,
        max_in_flight=info.max_num_seqs + config.be_prefetch,
        claim_timeout_s=config.claim_timeout_s,
        max_attempts=config.max_attempts,
        limits=welcome,
        about={
            "model": config.served_model_name,
            "max_model_len": welcome.max_model_len,
            "device": info.device,
            "dtype": info.dtype,
            "url": config.listen,
        },
        default_slo=default_slo,
        last_step=last_step,
        weights=weights_id(config, info.dtype),
    )
    return Endpoints(
        server,
        ItemPuller(
            puller_config, exchange, Redis.from_url(config.redis_url, socket_timeout=REDIS_TIMEOUT_S), gate
        ),
    )


def assemble(
    config: EngineConfig,
    runner: ModelRunner,
    cost_model: CostModel | None = None,
    step_mark: StepMark | None = None,
    after_step: Callable[[float, float], None] | None = None,
) -> tuple[EngineLoop, IoThread]:
    """The main loop around a runner, and the I/O thread that feeds it. Neither is started."""
    last_step = LastStep() if step_mark is None else step_mark.last_step
    scheduler = make_scheduler(config, runner.info, cost_model)
    mailbox = Mailbox()
    pulse = Pulse()
    # Ranks are watched by their own runner, which may have to load them again within a step.
    is_patient = config.tensor_parallel_size > 1
    watch = LoopWatch(pulse, lambda: mailbox.has_messages, config.stuck_after_s, is_patient=is_patient)
    io_thread = IoThread(
        mailbox,
        watch,
        make_endpoints=lambda exchange: make_endpoints(config, runner, scheduler, exchange, last_step),
        listen=config.listen,
        drain_grace_s=config.drain_grace_s,
    )
    ahead = config.async_scheduling
    loop = EngineLoop(
        scheduler,
        runner,
        receive=mailbox.receive,
        send=io_thread.send,
        clock=time.monotonic,
        publish=io_thread.publish,
        ahead=runner.info.computes_beside_host if ahead is None else ahead,
        pulse=pulse,
        mark=None if step_mark is None else step_mark.set,
        after_step=after_step,
    )
    return loop, io_thread


def adapt_threads(config: EngineConfig, info: RunnerInfo) -> Callable[[float, float], None] | None:
    """What chooses the number of threads after each step, if this process computes on the CPU."""
    if config.runner != "torch" or info.device != "cpu" or config.tensor_parallel_size > 1:
        return None
    import torch

    return ThreadCount(torch.get_num_threads(), torch.set_num_threads, time.monotonic).after_step


def serve(config: EngineConfig) -> None:
    """Load the model, open the endpoints, and run the loop until the engine has drained."""
    config = local_model(config)
    runner = make_runner(config)
    info = runner.info
    cost_model = None
    if config.runner == "torch":
        cost_model = first_cost_model(
            config.model, runner, info.max_num_batched_tokens, config.profile_s, time.perf_counter
        )
    step_mark = open_step_mark(config.listen, config.engine_id)
    loop, io_thread = assemble(config, runner, cost_model, step_mark, adapt_threads(config, info))
    io_thread.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: io_thread.request_drain())
    log.info(
        "serving %s on %s (%s): %d KV blocks of %d tokens, listening on %s",
        config.served_model_name, info.device, info.dtype, info.num_blocks, info.block_size, config.listen,
    )  # fmt: skip
    # A full garbage collection visits everything that was loaded, which stalls all requests for a quarter of a second.
    gc.collect()
    gc.freeze()
    loop.run()
    io_thread.join()
    if cost_model is not None:
        store_cost_model(config.model, info, cost_model)
    runner.close()
    log.info("stopped")


def main() -> int:
    """Run the engine with the flags of the command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Set before torch is imported. Its threads spin for a short time while they wait for each other, and then sleep. To
    # wake one up takes as long as that, dozens of times per step; to spin longer would take the cores from other
    # processes on this host.
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
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # The regular exit would take seconds, with this much loaded, and abort while another thread loads a tokenizer or
    # compiles a grammar: code that is not Python's cannot be stopped from outside.
    os._exit(status)
