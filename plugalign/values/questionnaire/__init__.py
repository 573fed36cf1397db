"""Questionnaires for models: whether one measures a model at all, and then what it says."""
