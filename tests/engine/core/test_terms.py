"""The wire repeats the core's sampling parameters; the two must not drift apart."""

import dataclasses
import typing

import msgspec

from engine.core import terms
from engine.core.terms import SamplingParams
from engine.lanes.translation import sampling_params
from engine.wire import request_terms
from engine.wire.request_terms import Sampling


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


def test_wire_and_core_grammars_have_the_same_kinds_and_fields():
    assert typing.get_args(terms.GrammarKind) == typing.get_args(request_terms.GrammarKind)
    wire = request_terms.Grammar("regex", "[a-z]+")
    core = sampling_params(Sampling(max_tokens=3, grammar=wire)).grammar
    assert core == terms.Grammar("regex", "[a-z]+")
    assert [f.name for f in dataclasses.fields(terms.Grammar)] == list(wire.__struct_fields__)
