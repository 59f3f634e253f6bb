"""The embedded default: a procedural task, its tokenizer and a tiny base model in the repo."""
