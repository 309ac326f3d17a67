"""The `headcount` command."""

from engine.cli.app import main as main
