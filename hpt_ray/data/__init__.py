"""Prompts and demonstrations: from files to token ids, in a seeded and resumable order.

`sources` reads parquet and JSON lines, `template` turns messages into token ids, `prompts` holds a
set of prompts on disk with random access, `sampler` draws from it. `mini` generates the small task,
`prepare` turns published files into the schema of `schema`. Nothing here grades, samples or trains.
"""
