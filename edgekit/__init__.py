"""edgekit takes a mobile vision model from training to a measured choice on a real device."""

__version__ = "0.1.0"
