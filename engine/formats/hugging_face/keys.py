"""What the keys of a config.json mean that all architectures share, and the values of those that cannot be honoured.

As written by transformers 4 and 5 (github.com/huggingface/transformers, models/ of those names).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.formats.base import Settings
from engine.spec import Activation

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}

HEAD_KEYS = ("pruned_heads", "per_layer_config", "num_attention_heads_per_layer", "layer_head_num", "kept_heads", "head_dim")
HONOURED = ("model_type", "architectures", "pad_token_id", "tie_word_embeddings", "id2label", "num_labels", *HEAD_KEYS)
HARMLESS = (  # of training, generation, other frameworks and bookkeeping: nothing a forward pass depends on
    *("_name_or_path", "_attn_implementation_autoset", "_commit_hash", "attention_probs_dropout_prob", "attention_dropout"),
    *("attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout"),
    *("cls_token_id", "cross_attention_hidden_size", "decoder_start_token_id", "directionality", "diversity_penalty", "do_sample"),
    *("dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty"),
    *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "hidden_dropout_prob"),
    *("initializer_range", "label2id"),
    *("is_encoder_decoder", "length_penalty", "mask_token_id", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups"),
    *("num_beams", "num_return_sequences", "output_attentions", "output_hidden_states", "output_past", "output_scores", "pooler_fc_size"),
    *("pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "prefix", "problem_type", "qa_dropout"),
    *("remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "seq_classif_dropout"),
    *("sinusoidal_pos_embds", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder"),
    *("tie_weights_", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p"),
    *("unk_token_id", "use_bfloat16", "use_cache"),
    *("attn_pdrop", "embd_pdrop", "n_ctx", "predict_special_tokens", "reorder_and_upcast_attn", "resid_pdrop"),  # GPT-2
    *("summary_activation", "summary_first_dropout", "summary_last_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
)


Change = Callable[[Any, Settings], str | None]  # of a value: what was expected instead, None where the value changes nothing


def only_absolute(value: Any, _: Settings) -> str | None:
    """position_embedding_type."""
    return None if value in (None, "absolute") else "absolute, the only one converted"


def not_a_decoder(value: Any, _: Settings) -> str | None:
    """is_decoder, add_cross_attention."""
    return "false: models are converted without the parts of a decoder beside an encoder" if value else None


def as_wide_as(hidden_key: str) -> Change:
    """embedding_size, of a model whose hidden size stands under `hidden_key`."""

    def change(value: Any, settings: Settings) -> str | None:
        hidden = settings.value(hidden_key)
        return None if value in (None, hidden) else f"{hidden}, the hidden size: embeddings of another size are not converted"

    return change


def read_activation(settings: Settings, name: str, default: str) -> Activation:
    """The activation a setting names; a problem where it is none of ACTIVATIONS."""
    value = settings.value(name)
    if value is not None and (not isinstance(value, str) or value not in ACTIVATIONS):
        settings.problem(f"config {name}", "one of " + ", ".join(ACTIVATIONS), repr(value)[:60])
        value = None
    return ACTIVATIONS[value or default]
