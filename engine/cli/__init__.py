"""The `headcount` command."""

from engine.cli.headcount import app as app
from engine.cli.headcount import main as main
