"""Structured pruning: channels are removed from a trained network, which learns again from the whole one."""

from edgekit.prune.schedule import STATE, State, Step, check, clear, prune, read

__all__ = ["STATE", "State", "Step", "check", "clear", "prune", "read"]
