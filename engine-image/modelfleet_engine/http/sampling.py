"""How the tokens of one call are drawn: the request's values, else the model's own defaults, else OpenAI's. Pure."""

from __future__ import annotations

from modelfleet_engine.http.limits import check_token_ids
from modelfleet_engine.http.schema import GenerationBody
from modelfleet_engine.serving import ReadyModel
from modelfleet_engine.step_plan import SamplingParameters


def sampling_parameters(body: GenerationBody, model: ReadyModel, *, seed: int, choice_index: int) -> SamplingParameters:
    """The parameters of one choice.

    Raises:
        RequestError: `logit_bias` names a token the model does not have.
    """
    defaults = model.tokenizer.defaults
    top_k = defaults.top_k if body.top_k is None else body.top_k
    return SamplingParameters(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=max(0, top_k),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        seed=seed,
        choice_index=choice_index,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=(
            defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
        ),
        logit_bias=_logit_bias(body, model),
        logprobs=body.answer_logprobs,
    )


def stop_token_ids(body: GenerationBody, model: ReadyModel) -> frozenset[int]:
    """Every token that ends a choice: the model's end tokens, unless ignored, and the client's own.

    Raises:
        RequestError: one of the client's is outside the vocabulary.
    """
    check_token_ids(body.stop_token_ids, vocab_size=model.vocab_size, param="stop_token_ids")
    own = frozenset(body.stop_token_ids)
    return own if body.ignore_eos else own | model.eos_token_ids


def _logit_bias(body: GenerationBody, model: ReadyModel) -> tuple[tuple[int, float], ...]:
    """OpenAI's object as pairs, in the order of token ids; what adds nothing is left out."""
    # Two spellings of one id ("5", "05") are one token: the last one counts, as with equal keys in JSON.
    biases = {int(token_id): bias for token_id, bias in body.logit_bias.items()}
    check_token_ids(tuple(biases), vocab_size=model.vocab_size, param="logit_bias")
    return tuple(sorted((token_id, bias) for token_id, bias in biases.items() if bias))
