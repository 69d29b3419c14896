"""`/tokenize` and `/detokenize`, as vLLM answers them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bros_batch.web.serving import MODEL_NAME, Web
from tests.factories_text import MAX_MODEL_LEN

TEXT = "Wir prüfen 数据 🙂 <|im_end|>"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]


def post(web: Web, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    with web.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_prompt_becomes_tokens_and_text_again(web: Web) -> None:
    found = post(web, "/tokenize", {"model": MODEL_NAME, "prompt": TEXT})
    assert found == {
        "count": len(found["tokens"]),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": web.tokenizer.encode_prompt(TEXT),
        "token_strs": None,
    }
    assert found["tokens"][-1] == 2  # <|im_end|>
    assert post(web, "/detokenize", {"model": MODEL_NAME, "tokens": found["tokens"]}) == {"prompt": TEXT}
    names = post(web, "/tokenize", {"prompt": TEXT, "return_token_strs": True})["token_strs"]
    assert len(names) == found["count"] and names[-1] == "<|im_end|>"
    assert post(web, "/tokenize", {"prompt": ""})["count"] == 0
    assert post(web, "/detokenize", {"tokens": []}) == {"prompt": ""}


def test_messages_become_the_prompt_that_a_chat_has(web: Web) -> None:
    found = post(web, "/tokenize", {"model": MODEL_NAME, "messages": MESSAGES})
    assert found["tokens"] == web.tokenizer.encode_chat(MESSAGES)
    with web.openai() as client:
        messages: Any = MESSAGES
        answer = client.chat.completions.create(model=MODEL_NAME, messages=messages, max_tokens=1)
    assert answer.usage is not None
    assert found["count"] == answer.usage.prompt_tokens
    long = [{"role": "user", "content": "word " * 4000}]
    assert post(web, "/tokenize", {"messages": long})["count"] > MAX_MODEL_LEN


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/detokenize", {"prompt": "x"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": ["x"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 10**6]}, "tokens"),
    ],
)
def test_a_wrong_field_is_named(web: Web, path: str, body: dict[str, Any], param: str) -> None:
    assert post(web, path, body, 400)["error"]["param"] == param


def test_another_model_is_not_tokenized_for(web: Web) -> None:
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})):
        assert post(web, path, {"model": "other", **body}, 404)["error"]["code"] == "model_not_found"
