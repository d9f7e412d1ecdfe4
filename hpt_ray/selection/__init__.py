"""The gate: per question, which data trains."""
