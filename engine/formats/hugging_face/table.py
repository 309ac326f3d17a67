"""The architectures: the model_type of a config.json → its row."""

from __future__ import annotations

from engine.formats.hugging_face.architecture import Architecture
from engine.formats.hugging_face.bert import BERT
from engine.formats.hugging_face.distilbert import DISTILBERT
from engine.formats.hugging_face.electra import ELECTRA
from engine.formats.hugging_face.gpt2 import GPT2
from engine.formats.hugging_face.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

ARCHITECTURES: dict[str, Architecture] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "camembert": CAMEMBERT,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "gpt2": GPT2,
}
