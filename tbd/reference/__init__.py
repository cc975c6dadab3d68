"""The planted world: a base model, question sets, and distilling the reference whose contamination is known."""
