"""Composition root: the only package that chooses implementations."""

from interlock.app.process import App as App
