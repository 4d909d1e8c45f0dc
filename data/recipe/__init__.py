"""How the demo's assets were made: run `python -m data.recipe` to make them again.

Each step is a module that can be run alone (`python -m data.recipe.<step> --help`): text,
tokenizer, model, autoencoders, corpus, records, score.
"""
