"""The version of distsgd, which names every run beside its settings."""

VERSION = "0.1.0"
