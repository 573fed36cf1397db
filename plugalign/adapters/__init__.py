"""Experts that other people made: LoRA adapters, PEFT models and whole models."""
