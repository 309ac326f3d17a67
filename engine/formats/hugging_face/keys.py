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

HEAD_KEYS = ("pruned_heads", "per_layer_config", "num_attention_heads_per_layer", "layer_head_num", "kept_heads")
HEAD_SIZES = (
    "head_dim",
    "attention_head_size",
    "attention_head_dim",
    "head_size",
    "d_head",
)  # the size of a head, whatever the hidden size
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
NORM_FIRST = ("pre_norm", "norm_first", "normalize_before", "encoder_normalize_before", "do_layer_norm_before", "pre_layer_norm")
CAUSAL = ("is_causal", "causal", "causal_attention", "use_causal_mask")
SECOND_NAMES = ("num_hidden_layers", "num_attention_heads", "hidden_size")  # of architectures with names of their own for these
HONOURED = (
    "model_type",
    "architectures",
    "pad_token_id",
    "tie_word_embeddings",
    "id2label",
    "num_labels",
    "finetuning_task",
    *HEAD_KEYS,
    *HEAD_SIZES,
)
HARMLESS = (  # of training, generation, other frameworks and bookkeeping: nothing a forward pass depends on
    *("attention_probs_dropout_prob", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop", "encoder_layerdrop"),
    *("n_labels", "nb_labels", "n_classes", "num_classes", "classifier_bias", "use_return_dict", "auto_map", "pruning_method"),
    *("attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout"),
    *("cls_token_id", "cross_attention_hidden_size", "decoder_start_token_id", "directionality", "diversity_penalty", "do_sample"),
    *("dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty"),
    *("forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "hidden_dropout_prob"),
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


def as_many_as(heads_key: str) -> Change:
    """Heads of keys and values, which are as many as those of queries."""

    def change(value: Any, settings: Settings) -> str | None:
        heads = settings.value(heads_key)
        return None if value in (None, heads) else f"{heads}, as {heads_key}: heads that share keys and values are not converted"

    return change


def none_of(why: str) -> Change:
    """A switch or a size that must be off, 0, null or absent."""

    def change(value: Any, _: Settings) -> str | None:
        return f"nothing: {why}" if value else None

    return change


def not_off(value: Any, _: Settings) -> str | None:
    """A switch that this architecture has on."""
    return None if value in (None, True) else "true, as in every model of this architecture"


def one_of(what: str, *values: Any) -> Change:
    """A name of what is computed, or a factor."""

    def change(value: Any, _: Settings) -> str | None:
        return None if value is None or value in values else f"{what}, the only one converted"

    return change


LAYER_NORM = one_of("layer_norm", "layer_norm", "layernorm", "LayerNorm", "layer-norm", "layer")
CHANGES: dict[str, Change] = {  # whose usual values all architectures share
    "position_embedding_type": only_absolute,
    **dict.fromkeys(("is_decoder", "add_cross_attention"), not_a_decoder),
    **dict.fromkeys(("layer_norm_type", "norm_type", "normalization_type", "norm_layer", "layernorm_type"), LAYER_NORM),
    **dict.fromkeys(("use_rms_norm", "rms_norm", "rms_norm_eps"), none_of("norms are layer norms")),
    **dict.fromkeys(("no_norm", "use_no_norm"), none_of("norms are layer norms")),
    **dict.fromkeys(("attention_type", "attn_type"), one_of("full", "full", "original_full", "softmax", "self")),
    **dict.fromkeys(("attention_window", "sliding_window", "window_size", "use_sliding_window", "local_attention"), none_of("no window")),
    **dict.fromkeys(("rope_theta", "rope_scaling", "rope_parameters", "rotary_dim", "rotary_value"), none_of("positions are embeddings")),
    **dict.fromkeys(("use_rotary", "rotary", "rotary_embeddings", "alibi", "use_alibi"), none_of("positions are embeddings")),
    **dict.fromkeys(("relative_attention", "use_relative_position", "relative_attention_num_buckets"), none_of("positions are embeddings")),
    "position_biased_input": not_off,
    **dict.fromkeys(("scale_embedding", "scale_embeddings", "scale_emb", "normalize_embeddings"), none_of("embeddings are not scaled")),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_softcapping"), none_of("scores are not capped")),
    **dict.fromkeys(("logit_scale", "attention_multiplier", "residual_multiplier", "embedding_multiplier"), one_of("1", 1)),
    **dict.fromkeys(("use_bias", "qkv_bias", "attention_bias", "mlp_bias"), not_off),
    **dict.fromkeys(("is_gated_act", "gated_mlp", "use_gated_mlp"), none_of("feed-forwards are not gated")),
    **dict.fromkeys(("num_experts", "num_local_experts"), one_of("1", 0, 1)),
    "apply_residual_connection_post_layernorm": none_of("what is added is the input of a norm"),
    **dict.fromkeys(("quantization_config", "quant_mode"), none_of("weights are converted as they are, in floating point")),
    **dict.fromkeys(("pre_seq_len", "prefix_projection"), none_of("no trained prefix is converted")),
}


def read_activation(settings: Settings, name: str, default: str) -> Activation:
    """The activation a setting names; a problem where it is none of ACTIVATIONS."""
    value = settings.value(name)
    if value is not None and (not isinstance(value, str) or value not in ACTIVATIONS):
        settings.problem(f"config {name}", "one of " + ", ".join(ACTIVATIONS), repr(value)[:60])
        value = None
    return ACTIVATIONS[value or default]
