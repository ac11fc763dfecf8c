"""The links of the chain from logits to a token, each a pure function on candidates."""
