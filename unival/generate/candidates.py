"""Score every answer of a closed set (specification 8.4): the inference of visual entailment and of VQA `allcand`."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unival.batch import pad
from unival.errors import UserError
from unival.generate.trie import AnswerTrie
from unival.model.linear import onto_rows
from unival.model.modeling import UnivalEncoderOutput, UnivalForConditionalGeneration


@torch.inference_mode()
def score_answers(
    model: UnivalForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    answers: Sequence[Sequence[int]],
    prefix: Tensor | None = None,
    chunk: int = 20,
) -> Tensor:
    """Return the log-probability (B, A) of each answer among the answers; the best is the first largest one.

    At each token, probabilities are normalised over those that some answer continues with; the sum counts `</s>`, not
    the prefix, and is not divided by the length. The encoder runs once. The decoder reads only the beginnings after
    which there is a choice, each once: a single one for "yes", "no" and "maybe".

    Args:
        model: In evaluation mode.
        inputs: `input_ids`, `attention_mask`, and the media inputs of `UnivalEncoder.forward`.
        answers: Token ids of A answers, without `<s>` and `</s>`.
        prefix: (B, P) ids, right-padded, without `<s>`, that the answers follow.
        chunk: How many beginnings pass through the decoder together, for each row.

    Raises:
        UserError: If an answer holds an id that is not of the vocabulary.
    """
    outside = [token for answer in answers for token in answer if not 0 <= token < model.config.vocab_size]
    if outside:
        raise UserError(f"an answer holds token {outside[0]}", "answers", f"ids are 0 to {model.config.vocab_size - 1}")
    trie = AnswerTrie(answers, model.config.eos_token_id)
    ids = inputs["input_ids"]
    prefix = ids.new_empty(len(ids), 0) if prefix is None else prefix
    prompts = [[model.config.bos_token_id, *row[row.ne(model.config.pad_token_id)].tolist()] for row in prefix]
    encoded = model.encoder(**inputs)
    branches = trie.branches()
    log_probs: dict[tuple[tuple[int, ...], int], Tensor] = {}
    for start in range(0, len(branches), chunk):
        paths = branches[start : start + chunk]
        features = last_features(model, encoded, prompts, paths)
        for index, path in enumerate(paths):
            children = trie.children(path)
            choice = onto_rows(model.decoder.output_projection, children)(features[:, index])
            choice = choice.float().log_softmax(-1)  # B children
            log_probs |= {(path, token): choice[:, column] for column, token in enumerate(children)}
    none: Tensor = encoded.last_hidden_state.new_zeros(len(ids), dtype=torch.float32)  # a token without an alternative
    columns = []
    for answer in answers:
        path = (*answer, trie.eos_id)
        terms = [log_probs.get((path[:length], token), none) for length, token in enumerate(path)]
        columns.append(torch.stack(terms).sum(0))
    return torch.stack(columns, dim=1)


def last_features(
    model: UnivalForConditionalGeneration,
    encoded: UnivalEncoderOutput,
    prompts: Sequence[Sequence[int]],
    paths: Sequence[Sequence[int]],
) -> Tensor:
    """Return decoder features (B, paths, D) at the last token of every prompt followed by every path."""
    sequences = [[*prompt, *path] for prompt in prompts for path in paths]
    assert encoded.last_hidden_state is not None
    device = encoded.last_hidden_state.device  # not the model's: accelerate may keep that elsewhere
    tokens = pad(sequences, model.config.pad_token_id).to(device)
    features = model.decoder(tokens, encoded)  # every row of the encoder is read by its consecutive paths
    last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=features.device)
    return features[torch.arange(len(last), device=features.device), last].unflatten(0, (len(prompts), -1))
