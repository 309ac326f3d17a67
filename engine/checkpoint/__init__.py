"""Checkpoint ⇄ engine directory, tensor files, surgery on heads, the tokenizer."""

from engine.checkpoint.directory import CONFIG as CONFIG
from engine.checkpoint.directory import DAMAGED as DAMAGED
from engine.checkpoint.directory import FIELDS as FIELDS
from engine.checkpoint.directory import NOT_PRUNED as NOT_PRUNED
from engine.checkpoint.directory import NOT_TOGETHER as NOT_TOGETHER
from engine.checkpoint.directory import TOKENIZER as TOKENIZER
from engine.checkpoint.directory import Checkpoint as Checkpoint
from engine.checkpoint.directory import Weights as Weights
from engine.checkpoint.directory import destination as destination
from engine.checkpoint.directory import digest as digest
from engine.checkpoint.directory import is_engine_directory as is_engine_directory
from engine.checkpoint.directory import read as read
from engine.checkpoint.directory import require_outside as require_outside
from engine.checkpoint.directory import save as save
from engine.checkpoint.directory import validate as validate
