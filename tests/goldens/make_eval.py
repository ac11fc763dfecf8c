"""Makes eval.json: what lm-evaluation-harness counts for tests/eval_task.py's model and questions,
by its own model for transformers' folders.

    pip install lm-eval torch transformers
    PYTHONPATH=tests python tests/goldens/make_eval.py
"""

import json
import sys
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.hellaswag import utils as hellaswag_utils

from eval_task import questions, small_model
from tenarai.ops import reference

MEAN = {"aggregation": "mean", "higher_is_better": True}


def tasks(files):
    def local(name, **more):
        data = {"path": "json", "data_files": {"test": str(files[name])}}
        given = {"dataset_path": "json", "dataset_kwargs": {"data_files": data["data_files"]}}
        return {"task": f"small_{name}", "test_split": "test", **given, **more}

    choices = {
        "output_type": "multiple_choice",
        "metric_list": [{"metric": m, **MEAN} for m in ("acc", "acc_norm", "acc_bytes")],
    }
    return [
        local("choice", doc_to_text="{{question}}", doc_to_choice="choices",
              doc_to_target="answer", **choices),
        local("hellaswag", process_docs=hellaswag_utils.process_docs, doc_to_text="{{query}}",
              doc_to_target="{{label}}", doc_to_choice="choices", **choices),
        local("lambada", output_type="loglikelihood",
              doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
              doc_to_target="{{' '+text.split(' ')[-1]}}",
              metric_list=[{"metric": "perplexity", "aggregation": "perplexity",
                            "higher_is_better": False}, {"metric": "acc", **MEAN}]),
        local("perplexity", output_type="loglikelihood_rolling", doc_to_text="",
              doc_to_target="{{page}}",
              metric_list=[{"metric": m} for m in
                           ("word_perplexity", "byte_perplexity", "bits_per_byte")]),
    ]  # fmt: skip


def evaluate(lm, files):
    """{task: {metric: value, metric_stderr: ...}} and every log-likelihood."""
    found = lm_eval.simple_evaluate(
        lm, tasks=tasks(files), task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0, log_samples=True, batch_size=1, verbosity="ERROR",
    )  # fmt: skip
    results = {}
    for name, values in found["results"].items():
        samples = found["samples"][name]
        results[name.removeprefix("small_")] = {
            "metrics": {k.split(",")[0]: v for k, v in values.items() if isinstance(v, float)},
            "log_likelihoods": [r[0] for s in samples for r in s["resps"]],
        }
    return results


def main():
    results = {}
    for bos in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            small_model(reference, bos).save(Path(folder) / "hf")
            lm = HFLM(str(Path(folder) / "hf"), device="cpu", dtype="float32", batch_size=1,
                      add_bos_token=True if bos else None)  # fmt: skip
            results["bos" if bos else "plain"] = evaluate(lm, questions(Path(folder)))
    path = Path(__file__).parent / "eval.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results)[:1500], file=sys.stderr)


if __name__ == "__main__":
    main()
