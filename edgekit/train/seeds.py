"""Random numbers by what they are for, never by what was drawn before: an epoch can be done again alone."""

import hashlib

import torch


def number(*parts: object) -> int:
    """A seed of 63 bits that *parts* name, such as ``(seed, epoch, step, "flip")``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A generator on the CPU, whatever the training device: the same draws on every machine."""
    return torch.Generator().manual_seed(number(*parts))
