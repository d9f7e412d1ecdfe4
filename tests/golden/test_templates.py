"""Exact token ids of prompts and demonstrations, with tokenizers small enough to check by hand."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hpt_ray.config.schema import DataConfig
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.template import Template, strip_opening
from hpt_ray.errors import UserError

QWEN_LIKE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBox it.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 263, 264, 265
LLAMA_SPECIAL = ["<|begin|>", "<|start|>", "<|end|>", "<|eot|>"]  # ids 263 … 266
USER = [{"role": "user", "content": "1+1?"}]


def byte_level(special: list[str], chat_template: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE: ids 0 … 255 are the bytes in the order of their characters, then seven merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("u", "s"), ("e", "r"), ("us", "er"), ("1", "+"), ("1", "1"), ("Ċ", "Ċ"), ("?", "2")]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **named)


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return byte_level(QWEN_SPECIAL, QWEN_LIKE, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="module")
def llama() -> PreTrainedTokenizerFast:
    return byte_level(LLAMA_SPECIAL, LLAMA_LIKE, bos_token="<|begin|>", eos_token="<|eot|>")


def prompt_ids(template: Template, messages: list[dict[str, str]]) -> list[int]:
    return template.encode_prompts([template.render(messages)])[0].tolist()


def test_qwen_like_prompt(qwen):
    template = Template(DataConfig(), qwen)
    assert template.render(USER) == (
        "<|im_start|>system\nBox it.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_ids(template, USER) == [
        *(264, 82, 88, 82, 83, 68, 76, 198, 33, 78, 87, 220, 72, 83, 13, 265, 198),  # system, its text
        *(264, 258, 198, 259, 16, 30, 265, 198),  # user \n 1+ 1 ?
        *(264, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198),  # assistant \n
    ]


def test_llama_like_prompt_has_one_bos(llama):
    template = Template(DataConfig(), llama)
    assert prompt_ids(template, USER) == [
        *(263, 264, 258, 265, 261, 259, 16, 30, 266),
        *(264, 64, 82, 82, 72, 82, 83, 64, 77, 83, 265, 261),
    ]


@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_chat_ids_are_those_of_the_tokenizers_own_chat_call(name, request):
    tokenizer = request.getfixturevalue(name)
    messages = [{"role": "system", "content": "Think."}, *USER]
    own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(Template(DataConfig(), tokenizer), messages) == own


def test_nothing_merges_across_the_border_of_prompt_and_demonstration(qwen):
    template = Template(DataConfig(template="plain"), qwen)
    prompt, demonstration = prompt_ids(template, USER), template.encode_demonstrations(["2"])[0].tolist()
    assert prompt == [259, 16, 30]
    assert demonstration == [17, 263]
    assert qwen("1+1?2")["input_ids"] == [259, 16, 262]  # as one text: another token, never sampled so


def test_plain_with_bos_and_text_template(llama):
    assert prompt_ids(Template(DataConfig(template="plain", add_bos=True), llama), USER) == [263, 259, 16, 30]
    text = Template(DataConfig(template="user: {prompt}\n\\boxed{}\n\n"), llama)
    assert text.render(USER) == "user: 1+1?\n\\boxed{}\n\n"
    assert prompt_ids(text, USER) == [
        *(258, 25, 220, 259, 16, 30, 198, 59, 65, 78, 87, 68, 67, 90, 92, 261),
    ]


def test_mini_prompt_and_demonstration_ids():
    template = Template(DataConfig(template="plain", add_bos=True), build_tokenizer())
    prompt = [{"role": "user", "content": "Compute 4*3-6."}]
    assert prompt_ids(template, prompt) == [1, 53, 7, 15, 6, 14, 9, 17]
    demonstration = template.encode_demonstrations(["4*3-6=6. \\boxed{6}"])[0]
    assert demonstration.tolist() == [7, 15, 6, 14, 9, 16, 9, 17, 21, 9, 22, 2]
    assert demonstration.dtype == "int32"


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({}, (265, 263)),  # what closes a turn, then the EOS
        ({"template": "plain"}, (263,)),
        ({"end_token": "<|im_end|>"}, (265,)),
        ({"end_token": "<|endoftext|>"}, (263,)),  # has the last word
    ],
)
def test_one_token_ends_demonstrations_and_rollouts_stop_on_it(qwen, settings, stops):
    template = Template(DataConfig(**settings), qwen)
    assert template.stop_token_ids == stops
    for text in ("1", *(f"1{qwen.convert_ids_to_tokens(stop)}" for stop in stops)):  # never two ends
        assert template.encode_demonstrations([text])[0].tolist() == [16, stops[0]]


@pytest.mark.parametrize(
    ("system_prompt", "expected"),
    [(None, "Think.\n\n1+1?"), ("", "1+1?"), ("Box it.", "Box it.\n\n1+1?")],
)
def test_system_prompt_is_kept_removed_or_replaced(qwen, system_prompt, expected):
    messages = [{"role": "system", "content": "Think."}, *USER]
    template = Template(DataConfig(template="plain", system_prompt=system_prompt), qwen)
    assert template.render(messages) == expected


@pytest.mark.parametrize(
    ("prompt", "demonstration", "expected"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\nSo", "So"),
        ("<|im_start|>assistant\n<think>\n", "<think>\n<think>\nSo", "<think>\nSo"),
        ("<|im_start|>assistant\n<think>", "<think>\nSo", "\nSo"),
        ("<|im_start|>assistant\n<think>\n", "<think>So", "So"),
        ("<|im_start|>assistant\n", "<think>\nSo", "<think>\nSo"),
        ("<|im_start|>assistant\n<think>\n", "So", "So"),
        ("1 + 3 = 4", "4", "4"),  # text that happens to repeat is no opening
    ],
)
def test_an_opening_that_the_prompt_has_is_taken_off_once(prompt, demonstration, expected):
    assert strip_opening(prompt, demonstration) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "plain", "end_token": "<|stop|>"}, "data.end_token '<|stop|>'"),
        ({"template": "Prompt:"}, "{prompt}"),
        ({"template": "chat", "add_bos": True}, "data.add_bos"),
        ({"template": "plain", "add_bos": True}, "no BOS token"),
    ],
)
def test_settings_the_tokenizer_cannot_serve(qwen, settings, message):
    with pytest.raises(UserError) as error:
        Template(DataConfig(**settings), qwen)
    assert message in str(error.value)


def test_tokenizers_without_chat_template_or_eos():
    with pytest.raises(UserError, match=r"no chat template.*data\.template=plain"):
        Template(DataConfig(), build_tokenizer())
    with pytest.raises(UserError, match=r"no EOS token.*data\.end_token"):
        Template(DataConfig(template="plain"), byte_level(QWEN_SPECIAL, QWEN_LIKE))
    assert Template(DataConfig(), byte_level(QWEN_SPECIAL, QWEN_LIKE)).stop_token_ids == (265,)


def test_prompts_a_template_cannot_render(qwen):
    turns = [*USER, {"role": "assistant", "content": "2"}, *USER]
    with pytest.raises(UserError, match=r"user, assistant, user.*data\.template=chat"):
        Template(DataConfig(template="plain"), qwen).render(turns)
    picky = byte_level(QWEN_SPECIAL, "{{ raise_exception('no system role') }}", eos_token="<|im_end|>")
    with pytest.raises(UserError, match="no system role"):
        Template(DataConfig(), picky).render(USER)


def test_a_template_that_leaves_out_what_is_asked_is_refused():
    parts = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>"
    template = "{% for m in messages %}" + parts + "{% endfor %}"
    vision = byte_level(QWEN_SPECIAL, template, eos_token="<|im_end|>")
    with pytest.raises(UserError, match=r"leaves out what the user asks where it is a text"):
        Template(DataConfig(), vision)
    assert Template(DataConfig(template="plain"), vision).render(USER) == "1+1?"


def test_fingerprint_changes_with_whatever_changes_ids(qwen, llama):
    settings = [
        DataConfig(),
        DataConfig(template="plain"),
        DataConfig(system_prompt=""),
        DataConfig(end_token="<|im_end|>"),
    ]
    prints = {Template(config, qwen).fingerprint for config in settings}
    prints |= {
        Template(DataConfig(template="plain", add_bos=bos), llama).fingerprint for bos in (False, True)
    }
    assert len(prints) == 6
    assert Template(DataConfig(), qwen).fingerprint in prints


THINKING = QWEN_LIKE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% generation %}{% endgeneration %}{% endif %}",
)


def test_arguments_of_the_chat_template_reach_it_and_its_fingerprint():
    tokenizer = byte_level(QWEN_SPECIAL, THINKING, eos_token="<|endoftext|>")
    plain, off = (
        Template(DataConfig(chat_template_kwargs=kwargs), tokenizer)
        for kwargs in ({}, {"enable_thinking": False})
    )
    assert plain.render(USER).endswith("assistant\n<think>\n")
    assert off.render(USER).endswith("assistant\n<think>\n\n</think>\n\n")
    assert plain.fingerprint != off.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"enable_thinkin, which .* does not use, so nothing would change\. It uses: enable_thinking\.$"),
        ({"template": "plain"}, r"data\.chat_template_kwargs goes with data\.template=chat"),
    ],
)
def test_arguments_that_change_nothing_are_refused(settings, message):
    tokenizer = byte_level(QWEN_SPECIAL, THINKING, eos_token="<|endoftext|>")
    with pytest.raises(UserError, match=message):
        Template(DataConfig(chat_template_kwargs={"enable_thinkin": False}, **settings), tokenizer)


def test_arguments_of_one_prompt_go_before_those_of_all():
    tokenizer = byte_level(QWEN_SPECIAL, THINKING, eos_token="<|endoftext|>")
    template = Template(DataConfig(chat_template_kwargs={"enable_thinking": False}), tokenizer)
    assert template.render(USER, {"enable_thinking": True}).endswith("assistant\n<think>\n")
    assert template.render(USER).endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(UserError, match=r"`chat_template_kwargs` names thinking, which .* does not use"):
        template.render(USER, {"thinking": True})
    with pytest.raises(UserError, match=r"`chat_template_kwargs` goes with data\.template=chat"):
        Template(DataConfig(template="plain"), tokenizer).render(USER, {"enable_thinking": True})


DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}{% for m in messages %}<|start|>{{ m.content }}<|eot|>{% endfor %}"
)


def test_a_template_that_prints_today_renders_the_same_on_every_day():
    dated = byte_level(LLAMA_SPECIAL, DATED, eos_token="<|eot|>")
    assert Template(DataConfig(), dated).render(USER) == "26 Jul 2024<|start|>1+1?<|eot|>"
    other = Template(DataConfig(chat_template_kwargs={"date_string": "1 May 2025"}), dated)
    assert other.render(USER) == "1 May 2025<|start|>1+1?<|eot|>"
