"""`tenarai finetune`: runs of a second, going on, which tokens are learned, and bad data."""

import json
import signal

import numpy as np
import pytest
from click.testing import CliRunner

import tenarai
from tenarai.cli import cli
from tenarai.data.packing import Example, PackedLoader
from tenarai.data.records import read_records
from tenarai.errors import TenaraiError
from tenarai.finetune.examples import Encoder
from tenarai.finetune.run import finetune
from tenarai.io.checkpoint import Checkpoint
from tenarai.io.checkpoint_folder import list_checkpoints
from tenarai.models import snapshot
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.tokenizers.chat import chat_template
from tiny import Quiet, chat_tokenizer, write_model, write_text

GIVEN = {
    "lora": {"rank": 4},
    "model": {"context": 96},
    "optimiser": {"batch": 2, "accumulate": 1, "lr": 1e-2},
    "schedule": {"steps": 6},
    "run": {"val_every": 3, "sample_tokens": 4, "checkpoint_every": 3, "log_every": 1},
}


def write_llama(path, tokenizer, seed=3):
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, context=128, layers=2, heads=4, kv_heads=2, head_size=8,
        width=32, hidden=64, rope=Rope(8), tied=True,
    )  # fmt: skip
    model = Llama(config)
    snapshot.write(path, model, Weights(model.table()).initialise(seed), tokenizer.to_json())
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("base") / "base.tenarai", chat_tokenizer())


def write_lines(path, lines):
    text = "".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
    path.write_text(text, encoding="utf-8")
    return path


def chat(question, answer, **more):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "d.jsonl", [chat(f"say {c}", c * 3) for c in "abcdefghij"])


def run(base, data, out, given=GIVEN, **more):
    return finetune(base, data, out=out, report=Quiet(), given=given, **more)


def arrays(folder):
    with Checkpoint(list_checkpoints(folder / "checkpoints")[0]) as c:
        return {name: c.read(name) for name in c.entries}, dict(c.meta)


@pytest.mark.parametrize("rank, saved", [(4, "float32"), (0, "float32"), (4, "bfloat16")])
def test_a_run_learns_and_goes_on_to_the_same_bits(base, data, tmp_path, rank, saved):
    given = GIVEN | {"lora": {"rank": rank, "dropout": 0.1}}
    given |= {"model": GIVEN["model"] | {"saved_activations": saved}}
    given |= {"optimiser": {"batch": 1, "accumulate": 2, "lr": 1e-2}}
    before = base.read_bytes()
    result = run(base, data, tmp_path / "whole", given)
    assert result.step == 6 and result.val_loss < result.val_loss_before - 0.02
    assert base.read_bytes() == before
    assert len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()) == 7

    short = given | {"schedule": {"steps": 6}, "run": given["run"] | {"checkpoint_every": 2}}
    stopped = tmp_path / "stopped"
    run(base, data, stopped, short)
    for path in list_checkpoints(stopped / "checkpoints"):
        if "00000006" in path.name:
            path.unlink()
    again = finetune(out=stopped, resume=True, report=Quiet())
    assert again.step == 6
    (one, meta), (other, _) = arrays(tmp_path / "whole"), arrays(stopped)
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name
    assert bool(meta["lora"]) == bool(rank)
    if not rank:  # it is a model
        assert tenarai.load(tmp_path / "whole").params["wte.weight"].shape == (258, 32)


def test_plain_text_and_prompts_without_a_template(tmp_path):
    base = write_model(tmp_path / "b.tenarai", context=64)
    text = write_text(tmp_path / "t.txt")
    given = GIVEN | {"model": {"context": 32}}
    result = run(base, text, tmp_path / "r", given)
    assert result.val_loss < result.val_loss_before
    lines = [{"prompt": f"{c} is ", "completion": c.upper()} for c in "abcdef"]
    data = write_lines(tmp_path / "p.jsonl", lines)
    assert run(base, data, tmp_path / "p", given).step == 6
    with pytest.raises(TenaraiError, match="line 1: is a conversation"):
        run(base, write_lines(tmp_path / "c.jsonl", [chat("a", "b")] * 3), tmp_path / "c", given)


def test_the_loss_is_on_the_answers_and_what_ends_them():
    tokenizer = chat_tokenizer()
    encode = Encoder(tokenizer, chat_template({}, tokenizer), 200)
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one <|im_end|>"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    record = read_example({"messages": turns})
    example = encode(record)
    learned = example.ids[example.counts]
    assert tokenizer.decode(learned.tolist()) == "two<|im_end|>four<|im_end|>"
    assert (example.ids == 257).sum() == 5  # the name in a message is no token
    last = encode.conversation(record, record.messages, last_only=True)
    assert tokenizer.decode(last.ids[last.counts].tolist()) == "four<|im_end|>"


def read_example(line, tmp=None):
    from tenarai.data.records import _record

    return _record(json.dumps(line), "x, line 1", pairs=False)


@pytest.mark.parametrize(
    "line",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_other_shapes_are_the_same_conversation(line):
    assert read_example(line).messages == read_example(chat("q", "a")).messages


def test_rows_hold_every_example_once_and_tell_them_apart(rng):
    sizes = [*rng.integers(2, 18, 40), 2, 17]
    examples = [
        Example(f"line {i}", np.full(n, i + 1, np.int32), np.arange(n) > 0)
        for i, n in enumerate(sizes)
    ]
    loader = PackedLoader(examples, 3, 16, seed=1)
    assert loader.batches < PackedLoader(examples, 3, 16, pack=False).batches / 1.3
    for _ in range(2):  # epochs
        seen = np.zeros(len(sizes) + 1, int)
        for _ in range(loader.batches):
            rows, targets = loader.next()
            assert rows.tokens.shape == targets.shape == (3, 16)
            for row, starts, wanted in zip(rows.tokens, rows.documents, targets, strict=True):
                for t, start in enumerate(starts):
                    assert row[t] == row[start]
                    assert wanted[t] in (-1, row[t])
                seen += np.bincount(wanted[wanted > 0], minlength=len(seen))
        assert seen[1:].tolist() == [n - 1 for n in sizes]
    loader.next()
    state = json.loads(json.dumps(loader.state()))
    wanted = loader.next()[0].tokens
    other = PackedLoader(examples, 3, 16, seed=1)
    other.restore(state)
    assert np.array_equal(other.next()[0].tokens, wanted)
    with pytest.raises(TenaraiError, match="context"):
        PackedLoader(examples, 3, 20, seed=1).restore(state)


def test_every_target_of_a_step_weighs_the_same(rng):
    sizes = [3, 17, 9, 2, 12, 5]
    examples = [Example(f"line {i}", np.ones(n, np.int32), np.arange(n) > 1)
                for i, n in enumerate(sizes)]  # fmt: skip
    loader = PackedLoader(examples, 1, 16, seed=2, pack=False, together=3)
    for _ in range(4):  # steps
        made = [loader.next() for _ in range(3)]
        counts = np.array([np.count_nonzero(targets >= 0) for _, targets in made])
        shares = np.array([rows.share for rows, _ in made])
        np.testing.assert_allclose(shares / 3, counts / counts.sum())


GOOD = json.dumps(chat("q", "a")) + "\n"
BAD = {
    "broken": ('{"messages": [\n', "line 2: is no JSON"),
    "no object": ("[1, 2]\n", "line 2: is list"),
    "empty answer": (json.dumps(chat("q", "  ")) + "\n", "line 2: message 2 .* empty answer"),
    "no answer": ('{"messages": [{"role": "user", "content": "q"}]}\n', "line 2: .*'user'"),
    "a number": ('{"prompt": 3, "completion": "a"}\n', "line 2: prompt is int"),
    "unknown": ('{"question": "q"}\n', "line 2: holds question: expected messages"),
    "no messages": ('{"messages": []}\n', "line 2: messages are no list"),
    "no content": ('{"messages": [{"role": "user"}]}\n', "line 2: the content of message 1"),
    "role": (json.dumps(chat("q", "a")).replace('"user"', '"boss"') + "\n", "line 2.*'boss'"),
    "empty text": ('{"text": " "}\n', "line 2: its text is empty"),
    "too long": (json.dumps(chat("q" * 200, "a")) + "\n", "line 2: has 2.. tokens.*--truncate"),
    "a pair": ('{"prompt": "q", "chosen": "a", "rejected": "b"}\n', "line 2: .*--dpo"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(base, tmp_path, name):
    line, message = BAD[name]
    data = write_lines(tmp_path / "d.jsonl", [GOOD, line, GOOD])
    with pytest.raises(TenaraiError, match=message):
        run(base, data, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_bad_files_and_settings(base, data, tmp_path):
    latin = tmp_path / "l.jsonl"
    latin.write_bytes(GOOD.encode() + b'{"text": "\xe9"}\n')
    with pytest.raises(TenaraiError, match="line 2: is not UTF-8"):
        read_records(latin)
    empty = write_lines(tmp_path / "e.jsonl", ["\n"])
    with pytest.raises(TenaraiError, match="is empty"):
        read_records(empty)
    with pytest.raises(TenaraiError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
    for given, message in (
        ({"model": {"context": 500}}, "takes 128 tokens"),
        ({"lora": {"rank": 4, "layers": "attn.z"}}, "'attn.z'"),
        ({"schedule": {"steps": 0}}, "at least 1"),
        ({"optimiser": {"lr": 1e-5}, "schedule": {"min_lr": 1e-3}}, "min_lr"),
    ):
        with pytest.raises(TenaraiError, match=message):
            run(base, data, tmp_path / "r", given)
    run(base, data, tmp_path / "r")
    with pytest.raises(TenaraiError, match="lora.rank is 4 in this run"):
        finetune(out=tmp_path / "r", resume=True, report=Quiet(), given={"lora": {"rank": 8}})
    with pytest.raises(TenaraiError, match="already holds a run"):
        run(base, data, tmp_path / "r")


def test_the_command_line(base, data, tmp_path):
    words = ["finetune", "-m", str(base), str(data), "--lora", "2", "--steps", "2", "--json"]
    words += ["--context", "96", "--batch", "2", "--sample-tokens", "3"]
    result = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "r"), "--no-pack"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["step"] == 2 and document["val_loss"] < document["val_loss_before"]
    assert "memory:" in result.stderr and "before: a sample" in result.stderr
    help = CliRunner().invoke(cli, ["finetune", "--help"]).output
    assert "--lora-layers" in help and help.count("  tenarai finetune") == 3


def test_an_adapter_is_used_by_name_of_its_run_and_merged(base, data, tmp_path):
    out = tmp_path / "r"
    finetune(base, data, out=out, report=Quiet(), given=GIVEN, merged=tmp_path / "m.tenarai")
    merged = tenarai.load(tmp_path / "m.tenarai")
    adapted = tenarai.load(base, lora=out)
    ids = np.arange(12, dtype=np.int32)
    np.testing.assert_allclose(merged.logits(ids), adapted.logits(ids), atol=1e-5)
    assert abs(tenarai.load(base).logits(ids) - adapted.logits(ids)).max() > 1e-3
    gguf = tenarai.load(base, lora=out / "adapter.gguf").logits(ids)
    np.testing.assert_allclose(gguf, adapted.logits(ids), atol=1e-5)
    words = ["run", "-m", str(base), "-p", "ab", "-n", "4", "--temp", "0", "--json"]
    result = CliRunner().invoke(cli, [*words, "--lora", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["token_ids"] == adapted.generate(
        "ab", 4, 0, return_tokens=True
    )
    with pytest.raises(TenaraiError, match="holds an adapter.*--lora"):
        tenarai.load(out)
    with pytest.raises(TenaraiError, match="exists"):
        run(base, data, tmp_path / "s", merged=tmp_path / "m.tenarai")
    assert not (tmp_path / "s").exists()


def test_a_signal_saves_everything_and_a_run_can_be_made_longer(base, data, tmp_path):
    class Stopping(Quiet):
        def step(self, record, steps, left):
            if record["step"] == 2:
                signal.raise_signal(signal.SIGINT)

    out = tmp_path / "r"
    result = finetune(base, data, out=out, report=Stopping(), given=GIVEN)
    assert (result.signal, result.step) == (signal.SIGINT, 2)
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    longer = {"schedule": {"steps": 8}}
    assert finetune(out=out, resume=True, report=Quiet(), given=longer).step == 8
