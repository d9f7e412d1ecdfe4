"""Prompts to rollouts: vLLM engines in actors of their own."""
