"""Prompts and demonstrations: from files to token ids, in a seeded and resumable order.

`files` reads rows of any kind of file, `shapes` knows what their columns mean, `sources` takes them apart,
`template` turns messages into token ids, `dataset` holds a set of prompts on disk with random access,
`sampler` draws from it. `mini` generates the small task,
`prepare` turns published files into the schema of `schema`. Nothing here grades, samples or trains.
"""
