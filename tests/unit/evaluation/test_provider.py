"""`treft/...` on tiny random models, against `treft.models.repair` and plain forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import anyio
import pytest
import torch
from inspect_ai.model import (
    ChatMessage,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolInfo
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from treft.errors import ConfigError, DataError, TemplateError
from treft.evaluation.provider import TreftAPI
from treft.models.loading import LoadOptions, load_model
from treft.models.repair import generate, patch

QUESTIONS = ("Where is the bank?", "Why?", "What is the weather like today, near the river?")
GREEDY = GenerateConfig(temperature=0.0, max_tokens=12)
SAMPLED = GenerateConfig(temperature=1.0, max_tokens=12, seed=3)


_FOLDERS: dict[str, str] = {}


@pytest.fixture
def folders(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], chat_tokenizer: Any
) -> dict[str, str]:
    """A base, a full finetune of it, two adapters, and a base of another shape with an adapter.

    They are made once, and no test changes them.
    """
    if not _FOLDERS:
        root = tmp_path_factory.mktemp("models")
        for name, seed, layers in (("base", 0, 2), ("tuned", 1, 2), ("wide", 0, 3)):
            tiny_model("llama", seed, num_hidden_layers=layers).save_pretrained(root / name)
            chat_tokenizer.save_pretrained(root / name)
        for name, base in (("adapter", "base"), ("adapter2", "base"), ("wide-adapter", "wide")):
            torch.manual_seed(len(name))
            lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            model = AutoModelForCausalLM.from_pretrained(root / base)
            get_peft_model(model, lora).save_pretrained(root / name)
        _FOLDERS.update({path.name: str(path) for path in root.iterdir()})
    return _FOLDERS


def api(name: str, **arguments: Any) -> TreftAPI:
    return TreftAPI(name, **arguments)


def ask(
    model: TreftAPI,
    prompts: Sequence[str | list[ChatMessage]],
    config: GenerateConfig,
    tools: Sequence[ToolInfo] = (),
) -> list[ModelOutput]:
    """Ask all at once."""
    found: dict[int, ModelOutput] = {}

    async def one(index: int, messages: list[ChatMessage]) -> None:
        found[index] = await model.generate(messages, list(tools), "auto", config)

    async def every() -> None:
        async with anyio.create_task_group() as group:
            for index, prompt in enumerate(prompts):
                group.start_soon(one, index, _messages(prompt))

    if len(prompts) == 1:  # a task group would wrap the error
        anyio.run(one, 0, _messages(prompts[0]))
    else:
        anyio.run(every)
    return [found[index] for index in range(len(prompts))]


def _messages(prompt: str | list[ChatMessage]) -> list[ChatMessage]:
    return prompt if isinstance(prompt, list) else [ChatMessageUser(content=prompt)]


def texts(outputs: Sequence[ModelOutput]) -> list[str]:
    return [output.completion for output in outputs]


def chats(prompts: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def expected(folder: str, **options: Any) -> list[str]:
    model, tokenizer = load_model(folder, None, LoadOptions(device="cpu"))
    return generate(
        model, tokenizer, chats(QUESTIONS), do_sample=False, max_new_tokens=12, **options
    )


def test_plain_answers_are_those_of_the_library(folders: dict[str, str]) -> None:
    found = texts(ask(api(folders["tuned"]), QUESTIONS, GREEDY))
    assert found == expected(folders["tuned"])
    assert len(set(found)) == len(QUESTIONS)


@pytest.mark.parametrize("regions", ["prefix", "postfix", ["prefix", "postfix"]])
def test_patched_answers_are_those_of_the_library(folders: dict[str, str], regions: Any) -> None:
    tuned, tokenizer = load_model(folders["tuned"], None, LoadOptions(device="cpu"))
    base, _ = load_model(folders["base"], None, LoadOptions(device="cpu"))
    names = [regions] if isinstance(regions, str) else regions
    repaired = patch(tuned, tokenizer, names, reference=base)
    wanted = repaired.generate(chats(QUESTIONS), do_sample=False, max_new_tokens=12)
    model = api(folders["tuned"], patch=regions, base=folders["base"])
    found = texts(ask(model, QUESTIONS, GREEDY))
    assert found == wanted
    assert found != expected(folders["tuned"])


def test_adapter_patched_by_switching_it_off(folders: dict[str, str]) -> None:
    model, tokenizer = load_model(folders["adapter"], None, LoadOptions(device="cpu"))
    assert isinstance(model, PeftModel)
    wanted = patch(model, tokenizer).generate(chats(QUESTIONS), do_sample=False, max_new_tokens=12)
    plain = texts(ask(api(folders["base"], adapter=folders["adapter"]), QUESTIONS, GREEDY))
    found = texts(ask(api(folders["adapter"], patch="prefix"), QUESTIONS, GREEDY))
    assert found == wanted
    assert plain == expected(folders["adapter"])
    assert found != plain


def test_patched_from_a_reference_file(folders: dict[str, str], tmp_path: Path) -> None:
    from treft.chat.regions import find_regions, template_hash
    from treft.core.conversations import prefix_request
    from treft.core.identity import identify
    from treft.core.recording import other_model
    from treft.core.reference import ReferenceBank

    base, tokenizer = load_model(folders["base"], None, LoadOptions(device="cpu"))
    bank = ReferenceBank(other_model(base), identify(base, template_hash(tokenizer)))
    bank.pin([prefix_request(find_regions(tokenizer, chats(QUESTIONS)[0]))])
    bank.save(tmp_path / "base.safetensors")
    file = str(tmp_path / "base.safetensors")
    from_file = api(folders["adapter"], patch="prefix", reference=file)
    switched_off = api(folders["adapter"], patch="prefix")
    assert texts(ask(from_file, QUESTIONS, GREEDY)) == texts(ask(switched_off, QUESTIONS, GREEDY))


def test_sampled_answers_do_not_depend_on_the_batch(folders: dict[str, str]) -> None:
    options = {"patch": "prefix", "base": folders["base"]}
    one = texts(ask(api(folders["tuned"], batch_size=1, **options), QUESTIONS, SAMPLED))
    all_at_once = api(folders["tuned"], batch_size=8, **options)
    assert texts(ask(all_at_once, QUESTIONS, SAMPLED)) == one
    assert texts(ask(all_at_once, QUESTIONS[::-1], SAMPLED)) == one[::-1]
    other = SAMPLED.model_copy(update={"seed": 4})
    assert texts(ask(all_at_once, QUESTIONS, other)) != one


def test_without_a_seed_answers_differ(folders: dict[str, str]) -> None:
    config = SAMPLED.model_copy(update={"seed": None})
    found = texts(ask(api(folders["tuned"]), [QUESTIONS[0]] * 4, config))
    assert len(set(found)) > 1


def test_several_choices(folders: dict[str, str]) -> None:
    config = SAMPLED.model_copy(update={"num_choices": 3})
    model = api(folders["tuned"])
    (output,) = ask(model, QUESTIONS[:1], config)
    words = [choice.message.text for choice in output.choices]
    assert len(set(words)) == 3
    assert words[0] == ask(model, QUESTIONS[:1], SAMPLED)[0].completion
    assert output.usage is not None
    assert output.usage.output_tokens <= 36


def test_log_probabilities_are_those_of_a_forward_pass(folders: dict[str, str]) -> None:
    config = SAMPLED.model_copy(update={"logprobs": True, "top_logprobs": 5, "temperature": 0.7})
    (output,) = ask(api(folders["tuned"]), QUESTIONS[:1], config)
    found = output.choices[0].logprobs
    assert found is not None
    model, tokenizer = load_model(folders["tuned"], None, LoadOptions(device="cpu"))
    prompt = tokenizer.apply_chat_template(
        chats(QUESTIONS)[0], add_generation_prompt=True, return_dict=False
    )
    seen = list(prompt)
    for token in found.content:
        with torch.no_grad():
            logprobs = model(torch.tensor([seen])).logits[0, -1].log_softmax(-1)
        top = logprobs.topk(5)
        assert token.top_logprobs is not None
        assert [part.logprob for part in token.top_logprobs] == pytest.approx(
            top.values.tolist(), abs=1e-4
        )
        named = [tokenizer.decode([i]) for i in top.indices.tolist()]
        assert [part.token for part in token.top_logprobs] == named
        same = [i for i in range(len(logprobs)) if tokenizer.decode([i]) == token.token]
        own = min(same, key=lambda i: abs(logprobs[i].item() - token.logprob))
        assert logprobs[own].item() == pytest.approx(token.logprob, abs=1e-4)
        seen.append(own)


def test_usage_and_the_reasons_to_stop(folders: dict[str, str]) -> None:
    model = api(folders["tuned"])
    (output,) = ask(model, QUESTIONS[:1], GREEDY)
    prompt = model.local.tokenizer.apply_chat_template(
        chats(QUESTIONS)[0], add_generation_prompt=True, return_dict=False
    )
    assert output.usage is not None
    assert output.usage.input_tokens == len(prompt)
    assert output.usage.output_tokens == 12
    assert output.usage.total_tokens == len(prompt) + 12
    assert output.stop_reason == "max_tokens"
    stop = output.completion[3:5]
    config = GREEDY.model_copy(update={"stop_seqs": [stop, "never"]})
    (stopped,) = ask(model, QUESTIONS[:1], config)
    assert stopped.stop_reason == "stop"
    assert stopped.completion == output.completion[: output.completion.index(stop)]
    assert stopped.usage is not None
    assert 0 < stopped.usage.output_tokens < 12


def test_an_end_token_ends_the_answer(folders: dict[str, str], tmp_path: Path) -> None:
    config = GREEDY.model_copy(update={"logprobs": True})
    (output,) = ask(api(folders["tuned"]), QUESTIONS[:1], config)
    logprobs = output.choices[0].logprobs
    assert logprobs is not None
    model, tokenizer = load_model(folders["tuned"], None, LoadOptions(device="cpu"))
    words = [token.token for token in logprobs.content]
    third = next(i for i in range(len(tokenizer)) if tokenizer.decode([i]) == words[2])
    model.generation_config.eos_token_id = [third]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (ended,) = ask(api(str(tmp_path)), QUESTIONS[:1], config)
    assert ended.stop_reason == "stop"
    assert ended.usage is not None
    assert ended.usage.output_tokens == 3
    assert ended.completion == "".join(words[:2])


def test_long_prompts_are_refused_and_long_answers_end_at_the_context(
    folders: dict[str, str],
) -> None:
    model = api(folders["tuned"])
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens and the model takes 512"):
        ask(model, ["river " * 600], GREEDY)
    words = 1
    while len(model.local.tokenizer("q " * (words + 1))["input_ids"]) < 470:
        words += 1
    (output,) = ask(model, ["q " * words], GREEDY.model_copy(update={"max_tokens": 100}))
    assert output.stop_reason == "model_length"
    assert output.usage is not None
    assert output.usage.total_tokens == 512


def test_system_messages_reach_the_model(folders: dict[str, str]) -> None:
    model = api(folders["tuned"])
    user = ChatMessageUser(content=QUESTIONS[0])
    with_system: list[ChatMessage] = [ChatMessageSystem(content="Fine weather."), user]
    plain, told = ask(model, [[user], with_system], GREEDY)
    assert plain.completion != told.completion


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GenerateConfig(frequency_penalty=1.0), "have no frequency_penalty"),
        (GenerateConfig(logit_bias={1: 2.0}, best_of=2), "have no best_of, logit_bias"),
    ],
)
def test_options_without_support_are_refused(
    folders: dict[str, str], config: GenerateConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ask(api(folders["base"]), QUESTIONS[:1], config)


def test_tools_need_a_template_that_shows_them(
    folders: dict[str, str], tmp_path: Path, chat_tokenizer: Any
) -> None:
    tool = ToolInfo(name="search_info", description="Look something up.")
    with pytest.raises(ConfigError, match="no place for tools"):
        ask(api(folders["base"]), QUESTIONS[:1], GREEDY, [tool])
    template = tmp_path / "tools.jinja"
    template.write_text(
        "{%- if tools %}{{- tools | tojson -}}{%- endif -%}" + chat_tokenizer.chat_template
    )
    model = api(folders["base"], template=str(template))
    shown, hidden = (ask(model, QUESTIONS[:1], GREEDY, tools)[0].usage for tools in ([tool], []))
    assert shown is not None
    assert hidden is not None
    assert shown.input_tokens > hidden.input_tokens + 20


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        (
            "base",
            {"ptach": "prefix"},
            ConfigError,
            r"ptach: unexpected .* There are adapter, ",
        ),
        ("base", {"patch": "suffix"}, ConfigError, r"patch\.0: input should be 'prefix'"),
        ("base", {"batch_size": 0}, ConfigError, "batch_size: input should be greater"),
        ("base", {"base": "x"}, ConfigError, "name a region"),
        ("base", {"patch": "prefix", "base": "x", "reference": "y"}, ConfigError, "give one of"),
        ("base", {"patch": "prefix"}, ConfigError, r"no adapter to switch off: .*base=\.\.\."),
        ("base", {"dtype": "float99"}, ConfigError, "dtype is 'float99'"),
        ("base", {"template": "missing.jinja"}, ConfigError, "missing.jinja cannot be read"),
        ("base", {"base_url": "http://x"}, ConfigError, "has no base URL"),
        ("/nowhere", {}, ConfigError, "there is no folder /nowhere"),
        ("base", {"patch": "prefix", "reference": "nope"}, DataError, "nope cannot be read"),
    ],
)
def test_bad_arguments(
    folders: dict[str, str], name: str, arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        api(folders.get(name, name), **arguments)


def test_an_adapter_of_another_base_is_refused(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"wide-adapter was trained on .*wide, not on .*base"):
        api(folders["base"], adapter=folders["wide-adapter"])
    with pytest.raises(ConfigError, match=r"wide-adapter does not fit on"):
        api(folders["base"], adapter=folders["wide-adapter"], allow_other_base=True)


def test_a_conversation_without_the_patched_region(folders: dict[str, str], tmp_path: Path) -> None:
    bare = tmp_path / "bare.jinja"
    bare.write_text("{%- for message in messages %}{{- message['content'] -}}{%- endfor -%}")
    model = api(folders["adapter"], patch="prefix", template=str(bare))
    with pytest.raises(TemplateError, match="no prefix tokens"):
        ask(model, QUESTIONS[:1], GREEDY)


def test_weights_are_loaded_once(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import treft.evaluation.local_model as local_model

    loaded: list[str] = []
    original = local_model.load_model

    def load(name: str, *arguments: Any) -> Any:
        loaded.append(Path(name).name)
        return original(name, *arguments)

    monkeypatch.setattr(local_model, "load_model", load)
    # What another test loaded may not have been let go yet.
    monkeypatch.setattr(local_model, "_loaded", WeakValueDictionary())
    first = api(folders["tuned"], patch="prefix", base=folders["base"])
    second = api(folders["tuned"], patch="postfix", base=folders["base"])
    third = api(folders["tuned"])
    weights = [found.local.repaired.model for found in (first, second, third)]
    assert weights[0] is weights[1] is weights[2]
    assert sorted(loaded) == ["base", "tuned"]


def test_what_decides_the_answer_decides_the_place_in_the_cache(
    folders: dict[str, str], tmp_path: Path, chat_tokenizer: Any
) -> None:
    template = tmp_path / "other.jinja"
    template.write_text(chat_tokenizer.chat_template.replace("tiny", "small"))
    arms = [
        api(folders["base"]),
        api(folders["tuned"]),
        api(folders["tuned"], patch="prefix", base=folders["base"]),
        api(folders["tuned"], patch="postfix", base=folders["base"]),
        api(folders["base"], adapter=folders["adapter"]),
        api(folders["base"], adapter=folders["adapter2"]),
        api(folders["base"], template=str(template)),
    ]
    urls = [arm.base_url for arm in arms]
    assert len(set(urls)) == len(arms)
    assert api(folders["base"], batch_size=3).base_url == urls[0]


def test_found_by_name_and_asked_through_inspect(folders: dict[str, str]) -> None:
    model: Model = get_model(f"treft/{folders['tuned']}", config=GREEDY, memoize=False)
    output = anyio.run(model.generate, QUESTIONS[0])
    assert output.completion == expected(folders["tuned"])[0]
    ids = anyio.run(model.api.tokenize, "The bank")
    assert anyio.run(model.api.count_tokens, "The bank") == len(ids) > 1
