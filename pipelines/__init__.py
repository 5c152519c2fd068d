"""The verbs: everything that reads, writes, trains, samples or shows. Imports `tokenizer` and `prior`, never the reverse."""
