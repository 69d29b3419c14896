"""The model that the checks of clients use: the demo model with a chat template that knows tools.

Its answers to anything but its own questions make little sense. That is enough, because the checks judge forms:
grammars guarantee those of structured answers and of the arguments of tools.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bros_batch.settings import DEMO_MODEL_DIR

# Prompts of agents are long, and the demo model's tokenizer knows few of their words.
CONTEXT_TOKENS = 16_384
TEMPLATE = """
{%- if bos_token %}{{ bos_token }}{% endif %}
{%- if tools %}
{{- '<|system|>Tools, one JSON object per line:\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- 'Call one as <tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call>' + eos_token }}
{%- endif %}
{%- for message in messages %}
{{- '<|' + ('user' if message.role == 'tool' else message.role) + '|>' }}
{%- if message.role == 'tool' %}{{ '<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- elif message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""


def make_model(directory: Path) -> Path:
    """Write the model to `directory`, which must not exist, and return it."""
    shutil.copytree(DEMO_MODEL_DIR, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE.strip())
    config = json.loads((directory / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT_TOKENS
    (directory / "config.json").write_text(json.dumps(config))
    return directory
