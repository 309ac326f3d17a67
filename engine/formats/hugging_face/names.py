"""What the Hugging Face families call their tensors, settings and activations.

Layouts as written by transformers 4 and 5 (github.com/huggingface/transformers, models/ of those names).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.formats.base import Settings
from engine.spec import Activation, Pooler

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

EMBEDDINGS = {  # ours → theirs, below the prefix; absent ones are not part of the family
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "token_types": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm",
}
LAYER = {  # ours → theirs, below a layer; each has .weight and .bias
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
DISTIL_LAYER = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward.up": "ffn.lin1",
    "feed_forward.down": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}
SETTINGS = {  # ours → their name in config.json
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "intermediate_size",
    "activation": "hidden_act",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "vocab": "vocab_size",
    "norm_eps": "layer_norm_eps",
}
DISTIL_SETTINGS = {
    "hidden": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "width": "hidden_dim",
    "activation": "activation",
    "positions": "max_position_embeddings",
    "vocab": "vocab_size",
}


@dataclass(frozen=True)
class Family:
    """One layout of encoders. prefix: of the model inside a task model; pads: positions skip the pad token (RoBERTa)."""

    prefix: str
    layers: str = "encoder.layer."
    embeddings: dict[str, str] = field(default_factory=lambda: EMBEDDINGS)
    layer: dict[str, str] = field(default_factory=lambda: LAYER)
    settings: dict[str, str] = field(default_factory=lambda: SETTINGS)
    pads: bool = False
    norm_eps: float = 1e-12  # where the configuration does not say
    classes: str = "Bert"  # what the names of its architectures start with
    masked: tuple[str, str, str, str] = (  # of the masked head: dense, norm, bias, decoder
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
        "cls.predictions.decoder",
    )
    masked_activation: Activation | None = None  # of the masked head, where it is not the layers'
    pooled: tuple[str, str, Pooler] = ("bert.pooler.dense", "classifier", "tanh")  # of sequence classification: dense, labels, activation
    discriminates: bool = False  # pre-trained to tell replaced tokens, not to predict words


BERT = Family("bert")
ROBERTA = Family(
    "roberta",
    pads=True,
    classes="Roberta",
    masked=("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
    masked_activation="gelu",
    pooled=("classifier.dense", "classifier.out_proj", "tanh"),
)
ELECTRA = Family(
    "electra",
    classes="Electra",
    masked=("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias", "generator_lm_head"),
    masked_activation="gelu",
    pooled=("classifier.dense", "classifier.out_proj", "gelu"),
    discriminates=True,
)
DISTILBERT = Family(
    "distilbert",
    layers="transformer.layer.",
    embeddings={name: theirs for name, theirs in EMBEDDINGS.items() if name != "token_types"},
    layer=DISTIL_LAYER,
    settings=DISTIL_SETTINGS,
    classes="DistilBert",
    masked=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
    pooled=("pre_classifier", "classifier", "relu"),
)
FAMILIES = {
    **{"bert": BERT, "roberta": ROBERTA, "xlm-roberta": ROBERTA, "camembert": ROBERTA},
    **{"distilbert": DISTILBERT, "electra": ELECTRA},
}

GPT2_SETTINGS = (
    *("n_layer", "n_embd", "n_head", "n_inner", "n_positions", "vocab_size", "activation_function", "layer_norm_epsilon"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
)

ENDINGS = {  # what an architecture's name ends with → task; the longest ending that fits counts
    "Model": "hidden",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "token_classification",
    "ForSequenceClassification": "sequence_classification",
}

HEAD_SETTINGS = ("pruned_heads", "per_layer_config", "num_attention_heads_per_layer", "layer_head_num", "kept_heads", "head_dim")
MEANT = (  # settings read for every family beside its own
    *("model_type", "architectures", "pad_token_id", "position_embedding_type", "tie_word_embeddings", "is_decoder", "add_cross_attention"),
    *("id2label", "num_labels", "embedding_size", *HEAD_SETTINGS),
)
WITHOUT_MEANING = (  # of training, generation, other frameworks and bookkeeping: nothing a forward pass depends on
    *("_name_or_path", "_attn_implementation_autoset", "_commit_hash", "attention_probs_dropout_prob", "attention_dropout"),
    *("attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout"),
    *(
        "cls_token_id",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "directionality",
        "diversity_penalty",
        "do_sample",
        "dropout",
    ),
    *("dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty"),
    *(
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "initializer_range",
        "label2id",
    ),
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


def read_activation(settings: Settings, name: str, default: str) -> Activation:
    """The activation a setting names; a problem where it is none of ACTIVATIONS."""
    value = settings.value(name)
    if value is not None and (not isinstance(value, str) or value not in ACTIVATIONS):
        settings.problem(f"config {name}", "one of " + ", ".join(ACTIVATIONS), repr(value)[:60])
        value = None
    return ACTIVATIONS[value or default]
