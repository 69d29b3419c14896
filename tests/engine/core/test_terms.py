"""The wire repeats the core's sampling parameters; the two must not drift apart."""

import dataclasses

import msgspec

from engine.core.terms import SamplingParams
from engine.lanes.translation import sampling_params
from engine.wire.protocol import Sampling


def test_wire_and_core_sampling_have_the_same_fields_and_defaults():
    core = {
        f.name: None if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(SamplingParams)
    }
    wire = {
        f.name: None if f.default is msgspec.NODEFAULT else f.default
        for f in msgspec.structs.fields(Sampling)
    }
    assert core == wire
    assert sampling_params(Sampling(max_tokens=3, stop=("x",))) == SamplingParams(max_tokens=3, stop=("x",))
