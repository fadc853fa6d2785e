"""The lines of YAML in docs/semantic_ids.md are what the recipe understands, and name every learner and loss."""

import re
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from sidrec.config.learner_parts import SidLossConfig
from sidrec.config.learners import TokenizerConfig
from sidrec.sid.learners.registry import LEARNERS

SECTION = (Path(__file__).parents[2] / "docs/semantic_ids.md").read_text()
TOKENIZER = TypeAdapter(TokenizerConfig)


def test_every_learner_is_one_line() -> None:
    lines = re.findall(r"^\| `(\{kind: .*?\})` ", SECTION, re.MULTILINE)
    configs = [
        TOKENIZER.validate_python({"vectors": ["text", "behavior"], "learner": yaml.safe_load(line)}) for line in lines
    ]
    assert {type(config.learner) for config in configs} == set(LEARNERS)


def test_the_section_and_its_added_keys() -> None:
    whole, added = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
    section = yaml.safe_load(whole)["tokenizer"]
    section["learner"] |= yaml.safe_load(added)["learner"]
    config = TOKENIZER.validate_python(section)
    assert config.learner.router.sparsity == 0.3  # type: ignore[union-attr]
    losses = re.search(r"Kinds of losses: (.*?)\.", SECTION, re.DOTALL)
    assert losses is not None
    named = [
        TypeAdapter(SidLossConfig).validate_python({"kind": kind}).kind for kind in re.findall(r"`(\w+)`", losses[1])
    ]
    schema = TypeAdapter(SidLossConfig).json_schema()
    assert sorted(named) == sorted(schema["discriminator"]["mapping"])
