"""Which token closes the assistant's turn, for the kinds of chat templates that are in use."""

import json
from pathlib import Path

import pytest
from test_templates import USER, byte_level, prompt_ids
from transformers import PreTrainedTokenizerFast

from hpt_ray.config.schema import DataConfig
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.data.turn import GENERATION_CONFIG, makers_stop_ids, name_stop_ids

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "templates"
GENERATE = "{% if add_generation_prompt %}"
# name: special tokens, EOS, the template, the ids in the generation config; then the token that ends demonstrations,
# and the others that rollouts stop on
KINDS = {
    "turns closed by a token that is not the EOS": (
        ["<eos>", "<im>", "</im>"],
        "<eos>",
        "{% for m in messages %}<im>{{ m.role }}\n{{ m.content }}</im>\n{% endfor %}"
        + GENERATE
        + "<im>assistant\n{% endif %}",
        [],
        ("</im>", ["<eos>"]),
    ),
    "the whole conversation closed by the EOS as well": (
        ["<eos>", "<user>", "<assistant>", "<end>"],
        "<eos>",
        "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<end>\n{% endfor %}"
        + GENERATE
        + "<assistant>\n{% else %}<eos>{% endif %}",
        ["<end>", "<assistant>", "<eos>"],
        ("<end>", ["<eos>"]),  # a token that opens a turn does not close one
    ),
    "closed by what opens the next turn": (
        ["<eos>", "<user>", "<assistant>"],
        "<eos>",
        "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{% endfor %}"
        + GENERATE
        + "<assistant>{% endif %}",
        ["<eos>", "<user>"],
        ("<user>", ["<eos>"]),
    ),
    "not closed at all": (
        ["<eos>"],
        "<eos>",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        + GENERATE
        + "assistant:{% endif %}",
        [],
        ("<eos>", []),
    ),
    "without a generation prompt": (
        ["<s>", "</s>"],
        "</s>",
        "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [/Q]{% else %} {{ m.content }}</s>"
        "{% endif %}{% endfor %}",
        ["</s>"],
        ("</s>", []),
    ),
}


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerFast:
    special, eos, template, makers, _ = KINDS[request.param]
    made = byte_level(special, template, eos_token=eos)
    made.save_pretrained(tmp_path)
    ids = made.convert_tokens_to_ids(makers)
    (tmp_path / GENERATION_CONFIG).write_text(json.dumps({"eos_token_id": ids}))
    return load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("tokenizer", "kind"), [(kind, kind) for kind in KINDS], indirect=["tokenizer"])
def test_turns_end_as_the_template_closes_them(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    end, others = KINDS[kind][-1]
    template = Template(DataConfig(), tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(template.stop_token_ids)) == [end, *others]
    whole = template.encode_prompts([template.render(USER)])[0].tolist()
    whole += template.encode_demonstrations(["2"])[0].tolist()
    assert whole[-1] == tokenizer.convert_tokens_to_ids(end)
    own = tokenizer.apply_chat_template([*USER, {"role": "assistant", "content": "2"}], return_dict=False)
    if kind != "not closed at all" and kind != "closed by what opens the next turn":
        assert own[: len(whole)] == whole  # what the makers' own rendering of the conversation begins with


def test_a_text_is_stripped_where_the_template_strips_it() -> None:
    stripping = "{% for m in messages %}<im>{{ m.content | trim }}</im>{% endfor %}"
    tokenizer = byte_level(["<eos>", "<im>", "</im>"], stripping, eos_token="<eos>")
    assert Template(DataConfig(), tokenizer).encode_demonstrations(["\n 1 \n"])[0].tolist()[:-1] == [16]
    keeping = byte_level(["<eos>", "<im>", "</im>"], stripping.replace(" | trim", ""), eos_token="<eos>")
    assert len(Template(DataConfig(), keeping).encode_demonstrations(["\n 1 \n"])[0]) == 6


@pytest.mark.parametrize(
    "system",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
        "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}",
    ],
    ids=["refused", "dropped"],
)
def test_a_system_message_that_the_template_does_not_take_heads_the_users(system: str) -> None:
    template = system + "{% for m in messages %}<im>{{ m.role }}\n{{ m.content }}</im>{% endfor %}"
    tokenizer = byte_level(["<eos>", "<im>", "</im>"], template, eos_token="<eos>")
    rule = {"role": "system", "content": "Be brief."}
    rendered = Template(DataConfig(), tokenizer).render([rule, *USER])
    assert rendered == "<im>user\nBe brief.\n\n1+1?</im>"
    of_config = Template(DataConfig(system_prompt="Be brief."), tokenizer)
    assert of_config.render(USER) == rendered


def test_an_exported_model_stops_where_its_training_did(tmp_path: Path) -> None:
    file = tmp_path / GENERATION_CONFIG
    file.write_text(json.dumps({"eos_token_id": 1, "temperature": 0.6}))
    name_stop_ids(tmp_path, (3, 1))
    assert json.loads(file.read_text()) == {"eos_token_id": [1, 3], "temperature": 0.6}
    before = file.stat().st_mtime_ns
    name_stop_ids(tmp_path, (1, 3))
    assert file.stat().st_mtime_ns == before
    assert makers_stop_ids(str(tmp_path)) == [1, 3]
    assert makers_stop_ids("nobody/has-this") == []


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no {CASES}")
@pytest.mark.parametrize("name", ["gemma_like", "phi_like", "llama3_like", "qwen_base_like", "no_end_like"])
def test_tokenizers_of_widely_used_kinds(name: str) -> None:
    expected = json.loads((CASES / "expected.json").read_text())[name]
    tokenizer = load_tokenizer(str(CASES / name))
    template = Template(DataConfig(template=expected["template"]), tokenizer)
    assert set(tokenizer.convert_ids_to_tokens(list(template.stop_token_ids))) == set(
        expected["rollouts_stop_on"]
    )
    last = template.encode_demonstrations(["So 3."])[0][-1]
    assert tokenizer.convert_ids_to_tokens(int(last)) == expected["demonstration_ends_with"]
    assert prompt_ids(template, USER).count(tokenizer.bos_token_id) == expected["bos_at_start"]
