"""What settings must satisfy together; each one's own bounds stand with it in settings.py."""

from __future__ import annotations

from tenarai.errors import TenaraiError

from .settings import Model, Settings

WITH_WINDOW = ("mistral", "phi3", "gemma3")
WITH_EXPERTS = ("mixtral", "qwen3moe")


def check_together(settings: Settings) -> None:
    """Raise TenaraiError where settings contradict each other, and say what would do."""
    model, schedule, lr = settings.model, settings.schedule, settings.optimiser.lr
    if not (model.family == "llama" and model.head_size):
        _check_heads(model)
    if model.family == "llama":
        _check_llama(model)
    if schedule.warmup > schedule.steps:
        raise TenaraiError(
            f"schedule.warmup = {schedule.warmup} is longer than the run of {schedule.steps} "
            f"steps: take a warm-up of at most {schedule.steps} or more steps"
        )
    if schedule.kind == "wsd" and schedule.warmup + schedule.decay > schedule.steps:
        raise TenaraiError(
            f"schedule.warmup + schedule.decay = {schedule.warmup} + {schedule.decay} is longer "
            f"than the run of {schedule.steps} steps: take a decay of at most "
            f"{schedule.steps - schedule.warmup}"
        )
    if schedule.kind != "constant" and schedule.min_lr > lr:
        raise TenaraiError(
            f"schedule.min_lr = {schedule.min_lr} is above optimiser.lr = {lr}: "
            f"take a min_lr from 0 to {lr}"
        )


def _check_heads(model: Model) -> None:
    """Heads that divide the width."""
    if model.width % model.heads:
        wider = -(-model.width // model.heads) * model.heads
        raise TenaraiError(
            f"model.heads = {model.heads} do not divide model.width = {model.width}: "
            f"take {_near(model.width, model.heads)} heads, or a width of {wider}"
        )


def _check_llama(model: Model) -> None:
    if model.heads % (model.kv_heads or model.heads):
        raise TenaraiError(
            f"model.kv_heads = {model.kv_heads} do not divide model.heads = {model.heads}: "
            f"take {_near(model.heads, model.kv_heads)}"
        )
    size = model.head_size or model.width // model.heads
    if size % 2:
        raise TenaraiError(
            f"a head has {size} channels, and RoPE turns pairs of them: take a model.width or "
            "model.heads whose quotient is even, or an even model.head_size"
        )
    if bool(model.experts) != (model.arch in WITH_EXPERTS):
        raise TenaraiError(
            f"model.experts = {model.experts}, and model.arch is {model.arch}: experts are of "
            f"{' and '.join(WITH_EXPERTS)}, which have 1 or more"
        )
    if model.experts and model.experts_per_token > model.experts:
        raise TenaraiError(
            f"model.experts_per_token = {model.experts_per_token} of model.experts = "
            f"{model.experts}: take at most {model.experts}"
        )
    if model.shared_hidden and not model.experts:
        raise TenaraiError(
            f"model.shared_hidden = {model.shared_hidden} is an expert beside others: set "
            "model.experts, or leave it out"
        )
    if model.window and model.arch not in WITH_WINDOW:
        raise TenaraiError(
            f"model.window = {model.window} is of {', '.join(WITH_WINDOW)}, model.arch is "
            f'{model.arch}: leave it out, or set model.arch = "mistral", a llama with a window'
        )


def _near(n: int, wanted: int) -> str:
    """The divisors of n that are nearest to `wanted`, listed."""
    fit = [d for d in range(1, n + 1) if n % d == 0]
    return ", ".join(map(str, sorted(sorted(fit, key=lambda d: abs(d - wanted))[:4])))
